import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { XsmDetector, type XsmMode } from '../../src/xen/xsm.ts';

const siloBuilt = 'CONFIG_XSM=y\nCONFIG_XSM_SILO=y\n# CONFIG_XSM_DUMMY_DEFAULT is not set\nCONFIG_XSM_SILO_DEFAULT=y\n';

/** Command line, configuration of the build, what follows. */
const cases: readonly (readonly [string, string | undefined, XsmMode])[] = [
  ['dom0_mem=1024M xsm=dummy', siloBuilt, 'dummy'],
  ['xsm=silo console=dtuart', undefined, 'silo'],
  ['a xsm=dummy xsm=silo', undefined, 'silo'],
  ['xsm=dummy xsm=nonsense', siloBuilt, 'dummy'],
  ['xsm=flask', undefined, 'flask'],
  ['xsm=nonsense', siloBuilt, 'silo'],
  ['noxsm=dummy', siloBuilt, 'silo'],
  ['<denied>', undefined, 'unknown'],
  ['', 'CONFIG_XSM=y\nCONFIG_XSM_DUMMY_DEFAULT=y\n', 'dummy'],
  ['', 'CONFIG_XSM=y\nCONFIG_XSM_FLASK_DEFAULT=y\n', 'flask'],
  ['', 'CONFIG_XSM=y\n', 'unknown'],
  ['', '# CONFIG_XSM is not set\n', 'dummy'],
];

describe('security module of Xen', () => {
  for (const [commandLine, config, mode] of cases) {
    test(`'${commandLine}', built with ${JSON.stringify(config)}: ${mode}`, () => {
      const asked: string[] = [];
      const xsm = new XsmDetector({
        commandLine: () => {
          asked.push('command line');
          return commandLine;
        },
        buildConfig: () => config,
        close: () => {},
      });
      const verdict = xsm.verdict();
      assert.equal(verdict.mode, mode);
      assert.ok(verdict.reason.length > 10);
      assert.equal(xsm.verdict(), verdict);
      assert.deepEqual(asked, ['command line']);
    });
  }
});
