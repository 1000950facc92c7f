/** Where the service writes for its operator; the shape of a pino logger. Nothing is logged per message. */
export interface ServiceLog {
  info(data: object, message: string): void;
  warn(data: object, message: string): void;
}
