import { dialectD5 } from '../../dist/src/virtio-msg/dialect.js';
import { idImplementationDefined, messageHeader, typeBus } from '../../dist/src/virtio-msg/header.js';
import {
  descriptors,
  handshakeVersion,
  hello,
  packetType,
  ready,
  refused,
  rings,
  welcome,
} from '../../dist/src/virtio-msg/loopback-handshake.js';
import {
  aliveByte,
  backendDeviceNodes,
  backendNodes,
  backendPath,
  frontendNodes,
  frontendPath,
  xenBusVersion,
  xenbusState,
} from '../../dist/src/virtio-msg/xen-bus.js';

const cell = (text) => text.replaceAll('|', '\\|');
const hex = (id) => `0x${id.toString(16).padStart(2, '0')}`;
const table = (head, rows) => [head, head.map(() => '---'), ...rows].map((row) => `| ${row.join(' | ')} |\n`).join('');

/** What a message is for, and who sends it: what the layout tables do not say. */
const about = {
  GET_DEVICE_INFO: ['driver', 'What the device is, and how large its parts are.'],
  GET_DEVICE_FEATURES: ['driver', 'Feature blocks that the device offers.'],
  SET_DRIVER_FEATURES: ['driver', 'Feature blocks that the driver accepts; the blocks that are not named stay.'],
  GET_CONFIG: ['driver', 'Reads configuration space.'],
  SET_CONFIG: ['driver', 'Writes configuration space, all bytes or none.'],
  GET_DEVICE_STATUS: ['driver', 'Reads the device status.'],
  SET_DEVICE_STATUS: ['driver', 'Sets status bits, or resets the device.'],
  GET_VQUEUE: ['driver', 'Reads the setting of a virtqueue; all but the index is zero when there is none.'],
  SET_VQUEUE: ['driver', 'Sets up a virtqueue, all of it or nothing; GET_VQUEUE tells which.'],
  RESET_VQUEUE: ['driver', 'Stops a virtqueue and clears its setting.'],
  GET_SHM: ['driver', 'Finds a shared memory region of the device.'],
  EVENT_CONFIG: ['device', 'Status or configuration has changed.'],
  EVENT_AVAIL: ['driver', 'A virtqueue has new buffers.'],
  EVENT_USED: ['device', 'A virtqueue has used buffers.'],
  GET_DEVICES: ['guest', 'Which device numbers are present in a window.'],
  PING: ['guest', 'Whether the other side answers.'],
  EVENT_DEVICE: ['service', 'A device came or went.'],
  REGION_ADD: ['guest', 'Shares memory; then its bus addresses, area << 48 | offset, can be used.'],
  REGION_DEL: ['guest', 'Takes memory back; the response comes when nothing uses it any more.'],
  QUEUE_NOTIFY: ['guest', 'Moves the notifications of one virtqueue from messages to descriptors or ports, or back.'],
  DEVICE_BIND: ['service', 'To a guest that serves devices: whose memory the addresses of a device mean.'],
  GRANT_RELEASE: ['guest', 'Wants to end grants that may still be mapped; the response comes when they are not.'],
  SHM_OPEN: ['guest', 'Asks for the memory behind a shared memory region of a device.'],
  FAILURE: ['service', 'A request will have no response. Its device, token, id and type say which one.'],
};

const packets = {
  hello: [hello, 'guest', 'none', 'Opens the connection.'],
  welcome: [welcome, 'service', 'the doorbell', 'What was agreed.'],
  rings: [rings, 'guest', 'the memfd of the rings', 'Where the rings are.'],
  ready: [ready, 'service', 'none', 'Messages may flow.'],
  refused: [refused, 'service', 'none', 'Why the connection ends now.'],
  descriptors: [descriptors, 'guest', 'those counted', 'Descriptors for messages to come.'],
};

/** The tail's size in terms of its count, found by trying: a layout has it as a function. */
function tailSize(tail) {
  const formulas = [
    [`\`${tail.count}\``, (n) => n],
    [`4 × \`${tail.count}\``, (n) => n * 4],
    [`(\`${tail.count}\` + 7) / 8`, (n) => (n + 7) >>> 3],
  ];
  const counts = Array.from({ length: 100 }, (_, n) => n);
  const found = formulas.find(([, size]) => counts.every((n) => size(n) === tail.byteLength(n)));
  if (found === undefined) throw new Error(`no words for the size of ${tail.name}`);
  return found[0];
}

function fieldTable(layout) {
  const fields = Object.entries(layout.fields).sort(([, a], [, b]) => a.offset - b.offset);
  const rows = [];
  let end = 0;
  const upTo = (offset) => {
    if (offset > end) rows.push([end, offset - end, 'bytes', '', 'zero']);
  };
  for (const [name, field] of fields) {
    upTo(field.offset);
    rows.push([field.offset, field.size, field.kind, `\`${name}\``, cell(field.doc)]);
    end = field.offset + field.size;
  }
  upTo(layout.size);
  if (layout.tail !== undefined) {
    const { tail } = layout;
    const kind = tail.kind === 'u32s' ? 'u32 each' : 'bytes';
    rows.push([layout.size, tailSize(tail), kind, `\`${tail.name}\``, cell(tail.doc)]);
  }
  return rows.length === 0 ? 'No payload.\n' : table(['Offset', 'Size', 'Type', 'Field', 'Meaning'], rows);
}

function messagesOf(wanted) {
  const messages = new Map();
  for (const row of dialectD5.rows()) {
    if (!wanted(row)) continue;
    if (about[row.name] === undefined) throw new Error(`no words for ${row.name}`);
    const message = messages.get(row.name) ?? { name: row.name, id: row.id, parts: [] };
    message.parts.push(row);
    messages.set(row.name, message);
  }
  return [...messages.values()];
}

const overview = (messages) =>
  table(
    ['Id', 'Message', 'Sent by', 'For'],
    messages.map(({ name, id, parts }) => {
      const [sender, use] = about[name];
      const link = `[${name}](#${name.toLowerCase()})`;
      return [`\`${hex(id)}\``, link, parts.length > 1 ? `${sender}, with a response` : sender, cell(use)];
    }),
  );

const partTitle = { request: 'Request', response: 'Response', event: 'Event' };

const details = (messages) =>
  messages
    .map(({ name, id, parts }) => {
      const tables = parts.map(({ kind, layout }) => `${partTitle[kind]}:\n\n${fieldTable(layout)}`);
      return `### ${name}\n\nId \`${hex(id)}\`. ${about[name][1]}\n\n${tables.join('\n')}`;
    })
    .join('\n');

const origin = (files) => `<!-- Generated from ${files} by \`npm run generate\`. -->\n`;
const isOurs = ({ id }) => (id & idImplementationDefined) !== 0;
const isBus = ({ type }) => (type & typeBus) !== 0;

function renderMessages() {
  const transport = messagesOf((row) => !isBus(row));
  const bus = messagesOf((row) => isBus(row) && !isOurs(row));
  return `${origin('src/virtio-msg/')}# virtio-msg, dialect D5

The byte layout of the messages, as this project speaks them. D5 is the text proposed to OASIS in spring 2026; it
publishes transport revision ${dialectD5.spec.revision}, as its forerunners with other layouts do. Everything is little endian. A message is the
header and a payload; offsets in payloads count from the end of the header. A message has exactly the size of its
tables: one that is shorter or longer is malformed and dropped without an answer. The maximum message size of a bus is
at least ${dialectD5.spec.minMessageSize} bytes.

## Header

${fieldTable(messageHeader)}
A response repeats id, device number and token of its request.

## Transport messages

Between the driver and one device.

${overview(transport)}
${details(transport)}
## Bus messages

Between a guest and its bus, with bit 1 of \`type\` set and device number 0. The messages of this project's own are in
[bridge.md](bridge.md).

${overview(bus)}
${details(bus)}`;
}

function renderBridge() {
  const messages = messagesOf((row) => isBus(row) && isOurs(row));
  return `${origin('src/virtio-msg/bus-messages.ts')}# Bus messages of this bridge

virtio-msg leaves the ids from \`${hex(idImplementationDefined)}\` on to the implementation of a bus. These are the ones of this project, bus
messages with the [header](virtio-msg-d5.md#header) of every message. What they do, and which errors they give, is in
[loopback.md](loopback.md) and [xen-bus.md](xen-bus.md). Reserved fields are sent as zero.

## Messages

${overview(messages)}
${details(messages)}`;
}

function renderHandshake() {
  const rows = [];
  const sections = [];
  for (const [key, type] of Object.entries(packetType)) {
    const [layout, sender, attached, use] = packets[key];
    rows.push([type, `[${layout.name}](#${layout.name.toLowerCase()})`, sender, attached, use]);
    sections.push(`## ${layout.name}\n\n${use}\n\n${fieldTable(layout)}`);
  }
  return `${origin('src/virtio-msg/loopback-handshake.ts')}# Packets of the loopback handshake

The packets on the \`SOCK_SEQPACKET\` socket of a [loopback bus](loopback.md), one packet a message, little endian. This
is version ${handshakeVersion}. Every packet begins with the same eight bytes and has exactly the size of its table. Reserved fields are
sent as zero.

## Packets

${table(['Type', 'Packet', 'Sent by', 'Descriptors attached', 'For'], rows)}
${sections.join('\n')}`;
}

const nodeTable = (nodes) =>
  table(
    ['Node', 'Meaning'],
    Object.entries(nodes).map(([name, meaning]) => [`\`${name}\``, cell(meaning)]),
  );

const stateName = (key) => key[0].toUpperCase() + key.slice(1);

function renderXenstore() {
  const frontend = frontendPath('<domid>', '<index>');
  const backend = backendPath('<service>', '<domid>', '<index>');
  return `${origin('src/virtio-msg/xen-bus.ts')}# Nodes of a Xen bus in xenstore

What a service and its guest write for one [Xen bus](xen-bus.md), version ${xenBusVersion}. Every number is decimal without leading
zeros; a flag is 1 where it is set and else absent; the parts of a list are separated by one blank.

## Directory of the service

\`${backend}\`, written by the service, read by the guest.

${nodeTable(backendNodes)}
### Devices whose memory another domain maps

\`${backend}/device/<number>\`, written by the service.

${nodeTable(backendDeviceNodes)}
## Directory of the guest

\`${frontend}\`, made by the service and owned by the guest.

${nodeTable(frontendNodes)}
## Values of a state node

${table(
  ['Value', 'State'],
  Object.entries(xenbusState).map(([key, value]) => [value, stateName(key)]),
)}
## Alive bytes

Bytes of the first page of the ring to the service, within the part of the ring's header that is otherwise unused.

${table(
  ['Byte', 'Cleared when this side ends'],
  Object.entries(aliveByte).map(([side, byte]) => [byte, side]),
)}`;
}

export const outputs = [
  { path: 'docs/protocol/virtio-msg-d5.md', render: renderMessages },
  { path: 'docs/protocol/bridge.md', render: renderBridge },
  { path: 'docs/protocol/handshake.md', render: renderHandshake },
  { path: 'docs/protocol/xenstore.md', render: renderXenstore },
];
