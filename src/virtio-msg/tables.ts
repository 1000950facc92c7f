import type { Decoded, Layout } from '../wire/layout.ts';
import { layout } from '../wire/layout.ts';

/** A request with its response. */
export interface RequestSpec<
  Q extends Layout<never, never> | Layout = Layout,
  P extends Layout<never, never> | Layout = Layout,
> {
  readonly id: number;
  readonly request: Q;
  readonly response: P;
}

/** A one-way message. */
export interface EventSpec<E extends Layout<never, never> | Layout = Layout> {
  readonly id: number;
  readonly event: E;
}

// biome-ignore lint/suspicious/noExplicitAny: a table row may hold any layout; Decoded recovers the exact type
export type AnyLayout = Layout<any, any>;
export type RequestTable = Readonly<Record<string, RequestSpec<AnyLayout, AnyLayout>>>;
export type EventTable = Readonly<Record<string, EventSpec<AnyLayout>>>;

export const emptyPayload = (name: string, source: string) => layout(name, source, 0, {});

/** Messages of a table as values: `{ name, body }`. */
export type RequestOf<T extends RequestTable> = {
  [N in keyof T & string]: { readonly kind: 'request'; readonly name: N; readonly body: Decoded<T[N]['request']> };
}[keyof T & string];
export type ResponseOf<T extends RequestTable> = {
  [N in keyof T & string]: { readonly kind: 'response'; readonly name: N; readonly body: Decoded<T[N]['response']> };
}[keyof T & string];
export type EventOf<T extends EventTable> = {
  [N in keyof T & string]: { readonly kind: 'event'; readonly name: N; readonly body: Decoded<T[N]['event']> };
}[keyof T & string];
