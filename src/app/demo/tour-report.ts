import { CliError, exitCode } from '../cli/exit-codes.ts';
import type { TourEvent } from './guest-process.ts';
import { humanBytes, type Story } from './story.ts';

interface Row {
  readonly what: string;
  readonly bytes: number;
  readonly mbPerSecond: number;
  readonly result: string;
}

const number = (event: TourEvent, field: string): number => Number(event[field]);

/** Turns what the guest prints into the story, and checks what only the host can check. */
export class TourReport {
  readonly #story: Story;
  readonly #rows: Row[] = [];
  #drewRandom = false;
  #diskHash: string | undefined;
  #statistics: TourEvent = { event: 'statistics' };

  constructor(story: Story) {
    this.#story = story;
  }

  tell(event: TourEvent): void {
    const story = this.#story;
    switch (event.event) {
      case 'devices': {
        const devices = event.devices as { number: number; name: string; maxVirtqueues: number; configSize: number }[];
        const rows = devices.map((d) => [String(d.number), d.name, String(d.maxVirtqueues), `${d.configSize} bytes`]);
        story.table(['DEVICE', 'TYPE', 'QUEUES', 'CONFIG'], rows);
        story.chapter('The guest reads its whole disk, then writes and checks the scratch disk');
        return;
      }
      case 'progress':
        story.progress(
          `device ${event.device}: ${humanBytes(number(event, 'bytes'))} of ${humanBytes(number(event, 'total'))}, ${event.mbPerSecond} MB/s`,
        );
        return;
      case 'read':
        this.#diskHash = String(event.sha256);
        story.fact(
          `device ${event.device}: read ${humanBytes(number(event, 'bytes'))}, SHA-256 ${this.#diskHash.slice(0, 16)}…`,
        );
        this.#add('read the disk', event, 'waits for the host');
        return;
      case 'wrote':
        story.fact(`device ${event.device}: wrote ${humanBytes(number(event, 'bytes'))}`);
        this.#add('write the scratch disk', event, 'flushed');
        return;
      case 'flushed':
        story.fact(`device ${event.device}: flushed; the service answered after fdatasync`);
        return;
      case 'verified':
        story.fact(`device ${event.device}: read back ${humanBytes(number(event, 'bytes'))}, the same`);
        this.#add('read it back', event, 'the same');
        return;
      case 'removed':
        story.fact(`the guest saw device ${event.device} go`);
        return;
      case 'added':
        story.fact(`the guest saw device ${event.device} come`);
        return;
      case 'console':
        story.chapter('The guest uses its console');
        story.fact(`device ${event.device}: the guest said "${event.said}"`);
        story.fact(`device ${event.device}: the guest heard "${event.heard}"`);
        return;
      case 'random':
        if (!this.#drewRandom) story.chapter('The guest draws random bytes from each entropy device');
        this.#drewRandom = true;
        story.fact(`device ${event.device}: ${event.bytes} bytes, ${String(event.hex).slice(0, 32)}…`);
        return;
      case 'statistics':
        this.#statistics = event;
        return;
      default:
    }
  }

  #add(what: string, event: TourEvent, result: string): void {
    this.#rows.push({ what, bytes: number(event, 'bytes'), mbPerSecond: number(event, 'mbPerSecond'), result });
  }

  /** @throws CliError when the guest did not read what the file holds */
  summary(fileHash: string): void {
    if (this.#diskHash !== fileHash) {
      throw new CliError(exitCode.dataMismatch, `the guest read SHA-256 ${this.#diskHash}, the file has ${fileHash}`);
    }
    const rows = this.#rows.map(({ what, bytes, mbPerSecond, result }, i) => [
      what,
      humanBytes(bytes),
      String(mbPerSecond),
      i === 0 ? 'SHA-256 equals that of the file' : result,
    ]);
    this.#story.table(['WHAT', 'BYTES', 'MB/S', 'RESULT'], rows);
    const { messages, doorbells, messagesIn, messagesOut } = this.#statistics;
    this.#story.fact('');
    this.#story.fact(
      `messages ${messages} (${messagesOut} from the guest, ${messagesIn} to it), doorbells ${doorbells}`,
    );
    this.#story.text('\n');
  }
}
