// The one entry of every npm script. It needs nothing but Node: it installs and builds first when that is needed.
// This file keeps to old syntax so that an old Node reaches the version check instead of a syntax error.

function isOldNode(version) {
  const parts = version.split('.').map(Number);
  return parts[0] < 20 || (parts[0] === 20 && parts[1] < 19);
}

if (isOldNode(process.versions.node)) {
  console.error(`vmsg needs Node 20.19 or newer, this is Node ${process.versions.node}.`);
  process.exitCode = 1;
} else {
  import('./lib/verbs.mjs').then(
    ({ runVerb }) => runVerb(process.argv[2], process.argv.slice(3)),
    (error) => {
      console.error(error);
      process.exitCode = 1;
    },
  );
}
