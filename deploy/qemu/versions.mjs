/** Order of one character in a Debian version: `~` before the end, the end before letters, letters before the rest. */
function rank(character) {
  if (character === '~') return -1;
  if (character === undefined || /\d/.test(character)) return 0;
  const code = character.charCodeAt(0);
  return /[A-Za-z]/.test(character) ? code : code + 256;
}

function compareText(a, b) {
  for (let i = 0; i < Math.max(a.length, b.length); i++) {
    const difference = rank(a[i]) - rank(b[i]);
    if (difference !== 0) return difference;
  }
  return 0;
}

/** Compares alternating runs of other characters and digits (deb-version(7)). */
function compareParts(a, b) {
  let [restA, restB] = [a, b];
  while (restA !== '' || restB !== '') {
    const [, textA, digitsA] = /^(\D*)(\d*)/.exec(restA);
    const [, textB, digitsB] = /^(\D*)(\d*)/.exec(restB);
    const text = compareText(textA, textB);
    if (text !== 0) return text;
    const [numberA, numberB] = [BigInt(digitsA || '0'), BigInt(digitsB || '0')];
    if (numberA !== numberB) return numberA < numberB ? -1 : 1;
    restA = restA.slice(textA.length + digitsA.length);
    restB = restB.slice(textB.length + digitsB.length);
  }
  return 0;
}

function split(version) {
  const colon = version.indexOf(':');
  const rest = version.slice(colon + 1);
  const dash = rest.lastIndexOf('-');
  return {
    epoch: colon === -1 ? '0' : version.slice(0, colon),
    upstream: dash === -1 ? rest : rest.slice(0, dash),
    revision: dash === -1 ? '0' : rest.slice(dash + 1),
  };
}

/** @returns {number} below 0, 0 or above 0, as dpkg orders the two Debian versions */
export function compareVersions(a, b) {
  const [left, right] = [split(a), split(b)];
  return (
    compareParts(left.epoch, right.epoch) ||
    compareParts(left.upstream, right.upstream) ||
    compareParts(left.revision, right.revision)
  );
}

/** Whether a version lies in `[first, end)`; point releases of `first` count, `~` ones of `end` do not. */
export function isTested(version, [first, end]) {
  return compareVersions(version, `${first}~`) >= 0 && compareVersions(version, `${end}~`) < 0;
}
