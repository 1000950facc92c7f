import {
  type CallExpression,
  type ExportDeclaration,
  type ImportDeclaration,
  type ImportTypeNode,
  isArrowFunction,
  isBindingElement,
  isBlock,
  isCallExpression,
  isConstructorDeclaration,
  isExportDeclaration,
  isExportSpecifier,
  isIdentifier,
  isImportDeclaration,
  isImportSpecifier,
  isImportTypeNode,
  isInterfaceDeclaration,
  isLiteralTypeNode,
  isNamedExports,
  isNamedImports,
  isNamespaceExport,
  isNoSubstitutionTemplateLiteral,
  isPropertyAccessExpression,
  isStringLiteral,
  isTypeAliasDeclaration,
  isVariableDeclaration,
  type Node,
  type NoSubstitutionTemplateLiteral,
  type SourceFile,
  type StringLiteral,
  SyntaxKind,
} from 'typescript/unstable/ast';
import { createVirtualFileSystem } from 'typescript/unstable/fs';
import { API } from 'typescript/unstable/sync';

/** One place where a file names another module. */
export interface Link {
  readonly specifier: string;
  /** The imported names; `*` stands for all of them. */
  readonly names: readonly string[];
  /** A `reference` is a path in a string, as a worker or a spawned program is named. */
  readonly kind: 'import' | 'reference';
  readonly line: number;
}

export interface ExportedName {
  readonly name: string;
  readonly line: number;
  readonly isType: boolean;
  /** Whether the file uses the name itself, beyond declaring it. */
  readonly usedInside: boolean;
}

export interface FunctionSpan {
  readonly name: string;
  readonly line: number;
  readonly lines: number;
  /** Whether it is the body of a test, suite or hook. */
  readonly isTestBody: boolean;
}

/** What the tidy rules need to know of one source file. Lines count from 1. */
export interface SourceModel {
  /** Relative to the package root, with `/`. */
  readonly path: string;
  readonly lines: number;
  readonly links: readonly Link[];
  readonly exports: readonly ExportedName[];
  readonly functions: readonly FunctionSpan[];
  /** Every string literal of the file. */
  readonly strings: ReadonlySet<string>;
}

const root = '/package';
const testCalls = new Set(['test', 'it', 'describe', 'suite', 'before', 'after', 'beforeEach', 'afterEach']);

const functionKinds = new Set([
  SyntaxKind.FunctionDeclaration,
  SyntaxKind.FunctionExpression,
  SyntaxKind.ArrowFunction,
  SyntaxKind.MethodDeclaration,
  SyntaxKind.Constructor,
  SyntaxKind.GetAccessor,
  SyntaxKind.SetAccessor,
]);

/** Parses sources with the compiler's own parser. @param texts by path relative to the package root */
export function parseSources(texts: ReadonlyMap<string, string>): SourceModel[] {
  const config = { compilerOptions: { allowJs: true, noLib: true, noResolve: true, types: [] }, include: ['**/*'] };
  const files: Record<string, string> = { [`${root}/tsconfig.json`]: JSON.stringify(config) };
  for (const [path, text] of texts) files[`${root}/${path}`] = text;
  const api = new API({ cwd: root, fs: createVirtualFileSystem(files) });
  try {
    const project = api.updateSnapshot({ openProjects: [`${root}/tsconfig.json`] }).getProject(`${root}/tsconfig.json`);
    return [...texts.keys()].map((path) => {
      const file = project?.program.getSourceFile(`${root}/${path}`);
      if (file === undefined) throw new Error(`the compiler did not read ${path}`);
      return new Collector(file, path).model();
    });
  } finally {
    api.close();
  }
}

/** Walks one syntax tree once and gathers the model. */
class Collector {
  readonly #file: SourceFile;
  readonly #path: string;
  readonly #links: Link[] = [];
  readonly #exports: Omit<ExportedName, 'usedInside'>[] = [];
  readonly #functions: FunctionSpan[] = [];
  readonly #strings = new Set<string>();
  readonly #identifierCounts = new Map<string, number>();

  constructor(file: SourceFile, path: string) {
    this.#file = file;
    this.#path = path;
  }

  model(): SourceModel {
    this.#visit(this.#file);
    const text = this.#file.text;
    return {
      path: this.#path,
      lines: text.split('\n').length - (text.endsWith('\n') ? 1 : 0),
      links: this.#links,
      exports: this.#exports.map((found) => ({
        ...found,
        usedInside: (this.#identifierCounts.get(found.name) ?? 0) > 1,
      })),
      functions: this.#functions,
      strings: this.#strings,
    };
  }

  #visit(node: Node): void {
    if (isIdentifier(node)) {
      this.#identifierCounts.set(node.text, (this.#identifierCounts.get(node.text) ?? 0) + 1);
    } else if (isText(node)) this.#string(node.text, node);
    else if (isImportDeclaration(node)) this.#import(node);
    else if (isExportDeclaration(node)) this.#exportDeclaration(node);
    else if (isImportTypeNode(node)) this.#link(literal(node.argument), [importedTypeName(node)], node);
    else if (isCallExpression(node) && node.expression.kind === SyntaxKind.ImportKeyword) {
      this.#link(literal(node.arguments[0]), ['*'], node);
    } else if (functionKinds.has(node.kind)) this.#function(node);
    if (hasModifier(node, SyntaxKind.ExportKeyword)) this.#exportedStatement(node);
    node.forEachChild((child) => {
      this.#visit(child);
    });
  }

  #lineAt(position: number): number {
    return this.#file.getLineAndCharacterOfPosition(position).line + 1;
  }

  #startLine(node: Node): number {
    return this.#lineAt(node.getStart(this.#file));
  }

  #link(specifier: string | undefined, names: readonly string[], node: Node): void {
    if (specifier !== undefined) this.#links.push({ specifier, names, kind: 'import', line: this.#startLine(node) });
  }

  #string(text: string, node: Node): void {
    this.#strings.add(text);
    if (isModuleSpecifier(node)) return;
    if (/^\.\.?\/.*\.m?[jt]s$/.test(text)) {
      this.#links.push({ specifier: text, names: [], kind: 'reference', line: this.#startLine(node) });
    }
  }

  #import(node: ImportDeclaration): void {
    const clause = node.importClause;
    const names: string[] = clause?.name === undefined ? [] : ['default'];
    const bindings = clause?.namedBindings;
    if (bindings !== undefined && isNamedImports(bindings)) names.push(...children(bindings).map(sourceName));
    else if (bindings !== undefined) names.push('*');
    this.#link(literal(node.moduleSpecifier), names, node);
  }

  #exportDeclaration(node: ExportDeclaration): void {
    const clause = node.exportClause;
    const from = literal(node.moduleSpecifier);
    if (clause === undefined) this.#link(from, ['*'], node);
    else if (isNamespaceExport(clause)) {
      this.#link(from, ['*'], node);
      this.#export(clause.name.text, clause, false);
    } else if (isNamedExports(clause)) {
      this.#link(from, children(clause).map(sourceName), node);
      for (const element of clause.elements) this.#export(element.name.text, element, node.isTypeOnly);
    }
  }

  #export(name: string, node: Node, isType: boolean): void {
    this.#exports.push({ name, line: this.#startLine(node), isType });
  }

  #exportedStatement(node: Node): void {
    const isType = isInterfaceDeclaration(node) || isTypeAliasDeclaration(node);
    if (hasModifier(node, SyntaxKind.DefaultKeyword)) this.#export('default', node, false);
    else for (const name of declaredNames(node)) this.#export(name, node, isType);
  }

  #function(node: Node): void {
    const body = children(node).find(isBlock);
    if (body === undefined) return;
    const line = this.#startLine(node);
    this.#functions.push({
      name: functionName(node),
      line,
      lines: this.#lineAt(node.end) - line + 1,
      isTestBody: isCallExpression(node.parent) && testCalls.has(calledName(node.parent)),
    });
  }
}

function children(node: Node): Node[] {
  const found: Node[] = [];
  node.forEachChild((child) => {
    found.push(child);
  });
  return found;
}

function isText(node: Node): node is StringLiteral | NoSubstitutionTemplateLiteral {
  return isStringLiteral(node) || isNoSubstitutionTemplateLiteral(node);
}

function isModuleSpecifier(node: Node): boolean {
  const { parent } = node;
  if (isCallExpression(parent)) return parent.expression.kind === SyntaxKind.ImportKeyword;
  return isImportDeclaration(parent) || isExportDeclaration(parent) || isLiteralTypeNode(parent);
}

function hasModifier(node: Node, kind: SyntaxKind): boolean {
  return children(node).some((child) => child.kind === kind);
}

function literal(node: Node | undefined): string | undefined {
  if (node !== undefined && isLiteralTypeNode(node)) return literal(node.literal);
  return node !== undefined && isText(node) ? node.text : undefined;
}

/** The name that an import or export specifier takes from the other module. */
function sourceName(node: Node): string {
  if (isImportSpecifier(node) || isExportSpecifier(node)) return (node.propertyName ?? node.name).text;
  return '*';
}

function importedTypeName(node: ImportTypeNode): string {
  return node.qualifier?.getText().split('.')[0] ?? '*';
}

function declaredNames(node: Node): string[] {
  const name = children(node).find(isIdentifier);
  if (name !== undefined) return [name.text];
  return children(node).flatMap((child) => variableNames(child));
}

function variableNames(node: Node): string[] {
  if (!isVariableDeclaration(node) && !isBindingElement(node)) return children(node).flatMap(variableNames);
  if (node.name === undefined) return [];
  return isIdentifier(node.name) ? [node.name.text] : variableNames(node.name);
}

function functionName(node: Node): string {
  const owner = isArrowFunction(node) && isVariableDeclaration(node.parent) ? node.parent : node;
  const name = children(owner).find((child) => isIdentifier(child) || child.kind === SyntaxKind.PrivateIdentifier);
  if (isConstructorDeclaration(node)) return 'constructor';
  return name !== undefined && !isArrowFunction(owner) ? name.getText() : 'a function';
}

function calledName(call: CallExpression): string {
  const callee = call.expression;
  if (isIdentifier(callee)) return callee.text;
  if (!isPropertyAccessExpression(callee)) return '';
  // Both `t.test(…)` and `describe.only(…)` run tests.
  const object = isIdentifier(callee.expression) ? callee.expression.text : '';
  return testCalls.has(object) ? object : callee.name.text;
}
