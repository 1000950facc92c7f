import type { TSchema } from 'typebox';
import { configSchema } from './config.ts';

/** One field of the config file in words. */
export interface ConfigField {
  /** `api.socket`; `<id>` stands for an id. */
  readonly path: string;
  readonly type: string;
  readonly required: boolean;
  /** Text of the default, or undefined where there is none or it depends on the machine. */
  readonly default: string | undefined;
  readonly description: string;
}

interface SchemaNode {
  readonly type?: string;
  readonly description?: string;
  readonly default?: unknown;
  readonly const?: unknown;
  readonly enum?: readonly unknown[];
  readonly items?: SchemaNode;
  readonly anyOf?: readonly SchemaNode[];
  readonly properties?: Readonly<Record<string, SchemaNode>>;
  readonly required?: readonly string[];
  readonly patternProperties?: Readonly<Record<string, SchemaNode>>;
  readonly minimum?: number;
  readonly maximum?: number;
}

/** Defaults that depend on who runs the service. */
const dependingDefaults: Readonly<Record<string, string>> = {
  stateDir: '/var/lib/vmsg for root, else $XDG_STATE_HOME/vmsg or ~/.local/state/vmsg',
  runtimeDir: '/run/vmsg for root, else $XDG_RUNTIME_DIR/vmsg or vmsg-<uid> in the temporary directory',
  'api.socket': 'api.sock in runtimeDir',
  'api.tcp.tokenFile': 'api-token in stateDir',
};

/** Every field, in the order of the schema. */
export function configFields(schema: TSchema = configSchema): readonly ConfigField[] {
  return fieldsOf(schema as SchemaNode, '');
}

function fieldsOf(schema: SchemaNode, prefix: string): ConfigField[] {
  const fields = Object.entries(schema.properties ?? {}).flatMap(([name, field]) => {
    const path = `${prefix}${name}`;
    const inner = [...fieldsOf(field, `${path}.`), ...fieldsOf(field.items ?? {}, `${path}[].`)];
    const isSection = inner.length > 0 && field.description === undefined;
    return isSection ? inner : [describeField(path, field, schema.required?.includes(name) ?? false), ...inner];
  });
  const entries = Object.values(schema.patternProperties ?? {}).flatMap((field) => fieldsOf(field, `${prefix}<id>.`));
  const variants = (schema.anyOf ?? []).flatMap((variant) => variantFields(variant, prefix));
  return [...fields, ...entries, ...variants];
}

function variantFields(variant: SchemaNode, prefix: string): ConfigField[] {
  const type = String(variant.properties?.type?.const);
  return fieldsOf(variant, prefix).map((field) => {
    if (field.path === `${prefix}type`) return field;
    return { ...field, description: `${type}: ${field.description}` };
  });
}

function describeField(path: string, schema: SchemaNode, required: boolean): ConfigField {
  const own = schema.default === undefined ? undefined : JSON.stringify(schema.default);
  return {
    path,
    type: typeText(schema),
    required,
    default: dependingDefaults[path] ?? own,
    description: schema.description ?? '',
  };
}

function typeText(schema: SchemaNode): string {
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum !== undefined) return schema.enum.map((value) => JSON.stringify(value)).join(' or ');
  if (schema.items !== undefined) return `list of ${typeText(schema.items)}`;
  const { type = 'value', minimum, maximum } = schema;
  return minimum === undefined || maximum === undefined ? type : `${type} ${minimum}..${maximum}`;
}

/** The fields for `--help`, at most `columns` wide. */
export function configHelp(columns = 100): string {
  return configFields()
    .map((field) => {
      const facts = [field.type, field.required ? 'required' : undefined, withDefault(field)];
      const head = `  ${field.path} (${facts.filter((fact) => fact !== undefined).join(', ')})`;
      return [...wrap(head, columns, '    '), ...wrap(`      ${field.description}`, columns, '      ')].join('\n');
    })
    .join('\n');
}

const withDefault = (field: ConfigField): string | undefined =>
  field.default === undefined ? undefined : `default ${field.default}`;

function wrap(text: string, columns: number, indent: string): string[] {
  const lines: string[] = [];
  let line = /^ */.exec(text)?.[0] ?? '';
  for (const word of text.trim().split(' ')) {
    const isStart = line.trim() === '';
    if (!isStart && line.length + 1 + word.length > columns) {
      lines.push(line);
      line = `${indent}${word}`;
    } else {
      line += isStart ? word : ` ${word}`;
    }
  }
  return [...lines, line];
}
