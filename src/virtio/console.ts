import { layout, u16, u32 } from '../wire/layout.ts';

/** Configuration space. */
export const consoleConfig = layout('virtio_console_config', 'virtio 1.3, 5.3.4', 12, {
  cols: u16(0, 'columns of the console, with SIZE'),
  rows: u16(2, 'rows of the console, with SIZE'),
  maxPorts: u32(4, 'ports that the device may have, with MULTIPORT'),
  emergencyWrite: u32(8, 'a character to write at once, with EMERG_WRITE'),
});

/** A message on a control queue; a name or a size may follow it. */
export const consoleControl = layout('virtio_console_control', 'virtio 1.3, 5.3.6.2', 8, {
  id: u32(0, 'port'),
  event: u16(4, 'event'),
  value: u16(6, 'depends on the event'),
});

/** What follows RESIZE. */
export const consoleResize = layout('virtio_console_resize', 'virtio 1.3, 5.3.6.2', 4, {
  cols: u16(0, 'columns'),
  rows: u16(2, 'rows'),
});

export const consoleEvent = {
  /** Driver: the device can be used (1) or not (0). */
  DEVICE_READY: 0,
  /** Device: there is such a port. */
  DEVICE_ADD: 1,
  /** Device: the port is gone. */
  DEVICE_REMOVE: 2,
  /** Driver: the port can be used (1) or not (0). */
  PORT_READY: 3,
  /** Device: the port is a console. */
  CONSOLE_PORT: 4,
  /** Device: the console has another size. */
  RESIZE: 5,
  /** Both: my side of the port is open (1) or closed (0). */
  PORT_OPEN: 6,
  /** Device: the name of the port follows, UTF-8 without a NUL. */
  PORT_NAME: 7,
} as const;

/** Queues of control messages, with MULTIPORT (virtio 1.3, 5.3.2). */
export const consoleControlQueues = { receive: 2, transmit: 3 } as const;

/** Index of the queue into which the device puts bytes of a port; its transmit queue is the next one. */
export const consoleReceiveQueue = (port: number): number => (port === 0 ? 0 : 2 * port + 2);

/** Queues of a device with so many ports. */
export const consoleQueueCount = (ports: number): number => 2 * ports + 2;

/** What a queue is for; `port` is undefined for control messages. */
export function consoleQueueRole(queue: number): { readonly port: number | undefined; readonly receive: boolean } {
  const receive = queue % 2 === 0;
  if (queue >= 4) return { port: (queue >> 1) - 1, receive };
  return { port: queue < 2 ? 0 : undefined, receive };
}
