import { limits } from '../../src/kit/limits.ts';
import { asDomid, type XenstorePermission } from '../../src/ports/hypervisor.ts';
import { HypervisorError } from '../../src/xen/errors.ts';

interface Node {
  value: string;
  permissions: readonly XenstorePermission[];
  /** Of the last change. */
  generation: number;
  readonly children: Map<string, Node>;
}

export type Right = 'read' | 'write';

/** A node changed; `exact`: only watches of this very node hear of it. */
export interface FakeChange {
  readonly path: string;
  readonly exact: boolean;
  readonly permissions: readonly XenstorePermission[];
}

const guestEntryMaxBytes = 2048;

/** Whether a domain may do that with a node of these permissions. */
export function allows(permissions: readonly XenstorePermission[], domid: number, right: Right): boolean {
  const [owner, ...others] = permissions;
  if (domid === 0 || owner?.domid === domid) return true;
  const access = others.find((permission) => permission.domid === domid)?.access ?? owner?.access ?? 'none';
  return access === 'both' || access === right;
}

const parts = (path: string): string[] => path.split('/').filter((name) => name !== '');
export const parentOf = (path: string): string => path.slice(0, path.lastIndexOf('/')) || '/';
const childOf = (path: string, name: string): string => `${path === '/' ? '' : path}/${name}`;

/** Nodes of xenstore. Paths are absolute and well-formed; a domain that lacks a right gets EACCES. */
export class FakeTree {
  readonly #root: Node;
  #generation: number;

  constructor(copied?: FakeTree) {
    this.#generation = copied === undefined ? 0 : copied.#generation;
    const permissions: readonly XenstorePermission[] = [{ domid: asDomid(0)!, access: 'none' }];
    this.#root =
      copied === undefined
        ? { value: '', permissions, generation: 0, children: new Map() }
        : structuredClone(copied.#root);
  }

  /** Changes with every change of the node, its permissions or the set of its children; -1: it does not exist. */
  generationOf(path: string): number {
    return this.#find(path)?.generation ?? -1;
  }

  read(domid: number, path: string): string {
    return this.#allowed(domid, path, 'read', 'xs_read').value;
  }

  directory(domid: number, path: string): string[] {
    return [...this.#allowed(domid, path, 'read', 'xs_directory').children.keys()].sort();
  }

  permissions(domid: number, path: string): XenstorePermission[] {
    return [...this.#allowed(domid, path, 'read', 'xs_get_permissions').permissions];
  }

  write(domid: number, path: string, value: string): FakeChange[] {
    const bytes = Buffer.byteLength(value);
    const fail = (errno: string) => new HypervisorError('xs_write', errno, { what: path });
    if (bytes + Buffer.byteLength(path) + 1 > limits.xenstoreValueMaxBytes) throw fail('E2BIG');
    if (domid !== 0 && bytes > guestEntryMaxBytes) throw fail('ENOSPC');
    const node = this.#create(domid, path, 'xs_write');
    node.value = value;
    node.generation = ++this.#generation;
    return [{ path, exact: false, permissions: node.permissions }];
  }

  setPermissions(domid: number, path: string, permissions: readonly XenstorePermission[]): FakeChange[] {
    const node = this.#find(path);
    const fail = (errno: string) => new HypervisorError('xs_set_permissions', errno, { what: path });
    if (node === undefined) throw fail('ENOENT');
    if (domid !== 0 && node.permissions[0]?.domid !== domid) throw fail('EACCES');
    if (domid !== 0 && permissions[0]?.domid !== domid) throw fail('EPERM');
    node.permissions = [...permissions];
    node.generation = ++this.#generation;
    return [{ path, exact: false, permissions: node.permissions }];
  }

  remove(domid: number, path: string): FakeChange[] {
    const parent = this.#find(parentOf(path));
    const name = parts(path).at(-1);
    if (name === undefined) throw new HypervisorError('xs_rm', 'EINVAL', { what: path });
    const node = parent?.children.get(name);
    if (parent === undefined || node === undefined) return [];
    this.#allowed(domid, path, 'write', 'xs_rm');
    parent.children.delete(name);
    parent.generation = ++this.#generation;
    return [{ path, exact: false, permissions: node.permissions }, ...descendants(path, node)];
  }

  /** Nodes that belong to a domain, the uppermost of each branch. */
  ownedBy(domid: number): string[] {
    const below = (path: string, node: Node): string[] =>
      node.permissions[0]?.domid === domid
        ? [path]
        : [...node.children].flatMap(([name, child]) => below(childOf(path, name), child));
    return below('/', this.#root);
  }

  #find(path: string): Node | undefined {
    return parts(path).reduce<Node | undefined>((node, name) => node?.children.get(name), this.#root);
  }

  #allowed(domid: number, path: string, right: Right, call: string): Node {
    const node = this.#find(path);
    if (node === undefined) throw new HypervisorError(call, 'ENOENT', { what: path });
    if (!allows(node.permissions, domid, right)) throw new HypervisorError(call, 'EACCES', { what: path });
    return node;
  }

  /** The node, made with those above it where missing; what is made belongs to the guest that made it. */
  #create(domid: number, path: string, call: string): Node {
    let node = this.#root;
    const missing = [...parts(path)];
    while (missing.length > 0 && node.children.has(missing[0]!)) node = node.children.get(missing.shift()!)!;
    if (!allows(node.permissions, domid, 'write')) throw new HypervisorError(call, 'EACCES', { what: path });
    for (const name of missing) {
      const [owner, ...others] = node.permissions;
      const own = domid === 0 ? owner! : { ...owner!, domid: asDomid(domid)! };
      node.generation = ++this.#generation;
      const made: Node = { value: '', permissions: [own, ...others], generation: 0, children: new Map() };
      made.generation = this.#generation;
      node.children.set(name, made);
      node = made;
    }
    return node;
  }
}

function descendants(path: string, node: Node): FakeChange[] {
  return [...node.children].flatMap(([name, child]) => {
    const below = childOf(path, name);
    return [{ path: below, exact: true, permissions: child.permissions }, ...descendants(below, child)];
  });
}
