import type { SourceModel } from './parse.ts';

const fileLinesLimit = 400;
const functionLinesLimit = 70;

/** Files and functions over the limits; the body of a test may be long, its file not. */
export function oversize(models: readonly SourceModel[]): string[] {
  return models.flatMap((model) => [
    ...(model.lines > fileLinesLimit ? [`${model.path} has ${model.lines} lines, limit ${fileLinesLimit}`] : []),
    ...model.functions
      .filter((span) => span.lines > functionLinesLimit)
      .filter((span) => !(span.isTestBody && model.path.startsWith('test/')))
      .map((span) => `${model.path}:${span.line} ${span.name} has ${span.lines} lines, limit ${functionLinesLimit}`),
  ]);
}
