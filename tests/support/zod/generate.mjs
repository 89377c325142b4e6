// Writes `schemas.json`: what zod's `toJSONSchema` makes of each form below, for each of its targets. Made again by
//   npm install --no-save zod@4 && node generate.mjs > schemas.json
// in this folder. Tests read the file, so that they need neither Node nor a network.
import { createRequire } from "node:module";
import * as z from "zod";

const TARGETS = ["draft-2020-12", "draft-7", "draft-4", "openapi-3.0"];

const Tree = z.object({ name: z.string(), get children() { return z.array(Tree); } });
const List = z.object({ value: z.number(), get next() { return List.nullable(); } });
const Ann = z.object({ name: z.string(), get friends() { return z.array(Bob).optional(); } });
const Bob = z.object({ email: z.email(), get friend() { return Ann.optional(); } });
const Term = z.lazy(() => z.union([z.number(), z.object({ op: z.enum(["+", "*"]), left: Term, right: Term })]));
const Named = z.object({ id: z.uuid() }).meta({ id: "Named", title: "A named one", examples: [{ id: "x" }] });

const FORMS = {
  string: z.string(), number: z.number(), int: z.int(), int32: z.int32(), uint32: z.uint32(), float32: z.float32(),
  float64: z.float64(), boolean: z.boolean(), null: z.null(), any: z.any(), unknown: z.unknown(), never: z.never(),
  literal: z.literal("a"), "literal number": z.literal(7), "literal null": z.literal(null),
  literals: z.literal(["a", 1, true]), enum: z.enum(["a", "b"]), "native enum": z.enum({ Up: 1, Down: 2 }),
  "min and max": z.string().min(1).max(20), length: z.string().length(5), nonempty: z.string().nonempty(),
  regex: z.string().regex(/^[a-z]+$/), "regex with look-ahead": z.string().regex(/^(?=.*\d)(?=.*[A-Z]).{8,}$/),
  "regex with look-behind": z.string().regex(/(?<!\.)@example\.com$/), "two regexes": z.string().regex(/a/).regex(/b/),
  "starts with": z.string().startsWith("a"), "ends with": z.string().endsWith("z"), includes: z.string().includes("m"),
  lowercase: z.string().lowercase(), uppercase: z.string().uppercase(), trim: z.string().trim(),
  email: z.email(), "html5 email": z.email({ pattern: z.regexes.html5Email }),
  "rfc5322 email": z.email({ pattern: z.regexes.rfc5322Email }),
  "unicode email": z.email({ pattern: z.regexes.unicodeEmail }),
  guid: z.guid(), uuid: z.uuid(), "uuid v4": z.uuidv4(), "uuid v7": z.uuidv7(), url: z.url(), "http url": z.httpUrl(),
  hostname: z.hostname(), emoji: z.emoji(), nanoid: z.nanoid(), cuid: z.cuid(), cuid2: z.cuid2(), ulid: z.ulid(),
  xid: z.xid(), ksuid: z.ksuid(), ipv4: z.ipv4(), ipv6: z.ipv6(), cidrv4: z.cidrv4(), cidrv6: z.cidrv6(), mac: z.mac(),
  base64: z.base64(), base64url: z.base64url(), e164: z.e164(), jwt: z.jwt(), hex: z.hex(), hash: z.hash("sha256"),
  "iso date": z.iso.date(), "iso time": z.iso.time(), "iso datetime": z.iso.datetime(),
  "iso datetime with offset": z.iso.datetime({ offset: true }),
  "iso datetime local": z.iso.datetime({ local: true, precision: 3 }), "iso duration": z.iso.duration(),
  "template literal": z.templateLiteral(["v", z.number(), ".", z.enum(["a", "b"])]),
  minimum: z.number().min(5), maximum: z.number().max(5), "greater than": z.number().gt(5), "less than": z.number().lt(5),
  positive: z.number().positive(), nonnegative: z.number().nonnegative(), negative: z.number().negative(),
  "multiple of": z.number().multipleOf(5), "safe int": z.number().int(), "between, both open": z.number().gt(0).lt(1),
  "greater and at least": z.number().gt(3).min(5), array: z.array(z.string()),
  "array of length": z.array(z.string()).length(3), "array nonempty": z.array(z.string()).min(1).max(9),
  tuple: z.tuple([z.string(), z.number()]), "tuple with a rest": z.tuple([z.string()], z.number()),
  set: z.array(z.string()).meta({ uniqueItems: true }), object: z.object({ a: z.string(), b: z.number().optional() }),
  "strict object": z.strictObject({ a: z.string() }), "loose object": z.looseObject({ a: z.string() }),
  catchall: z.object({ a: z.string() }).catchall(z.number()), partial: z.object({ a: z.string() }).partial(),
  pick: z.object({ a: z.string(), b: z.string() }).pick({ a: true }), extended: Named.extend({ more: z.string() }),
  record: z.record(z.string(), z.number()), "record of an enum": z.record(z.enum(["a", "b"]), z.number()),
  "partial record": z.partialRecord(z.enum(["a", "b"]), z.number()),
  "record of a pattern": z.record(z.string().regex(/^x-/), z.string()),
  "record of emails": z.record(z.email(), z.string()),
  "loose record": z.looseRecord(z.string().regex(/^(?!y)/), z.string()),
  union: z.union([z.string(), z.number()]), xor: z.xor([z.string(), z.number()]),
  "discriminated union": z.discriminatedUnion("type", [
    z.object({ type: z.literal("a"), x: z.email() }), z.object({ type: z.literal("b"), y: z.number() }),
  ]),
  intersection: z.intersection(z.object({ a: z.string() }), z.object({ b: z.number() })),
  optional: z.string().optional(), nullable: z.string().nullable(), nullish: z.number().nullish(),
  "nullable object": z.object({ a: z.object({ b: z.string() }).nullable() }), "nullable enum": z.enum(["a"]).nullable(),
  "nullable reference": z.object({ a: Named.nullable(), b: Named }), default: z.string().default("x"),
  "default that looks like a schema": z.object({ a: z.any().default({ $ref: "#/nowhere", $id: "urn:x" }) }),
  "literal that looks like a schema": z.any().meta({ const: { $ref: "#/nowhere", $id: "urn:x" } }),
  examples: z.any().meta({ examples: [{ $ref: "http://example.com/none" }, { $id: 7 }] }), prefault: z.string().prefault("x"),
  catch: z.number().catch(0), readonly: z.array(z.string()).readonly(), branded: z.string().brand("b"),
  pipe: z.pipe(z.string(), z.string().min(2)), coerce: z.coerce.number(), codec: z.codec(z.string(), z.number(), {
    decode: Number, encode: String,
  }),
  stringbool: z.stringbool(), file: z.file().min(1).mime(["image/png", "image/jpeg"]), json: z.json(),
  "described and titled": z.string().describe("what it is").meta({ title: "It", deprecated: true }),
  registered: Named, "registered twice": z.object({ a: Named, b: Named }), tree: Tree, "linked list": List,
  "mutual recursion": Ann, "arithmetic term": z.object({ term: Term }), "function input": z.tuple([z.string(), Tree]),
  "non-optional": z.nonoptional(z.string().optional()), "property names": z.object({ $ref: z.string(), $id: z.string(),
    default: z.string(), const: z.number(), properties: z.object({ enum: z.boolean() }) }),
  "exact optional": z.object({ a: z.exactOptional(z.string()) }), keyof: z.object({ a: z.string(), b: z.string() }).keyof(),
  promise: z.promise(z.string()),
};

const schemas = new Map(); // by their text: what is equal stands once
for (const [name, form] of Object.entries(FORMS)) {
  for (const target of TARGETS) {
    for (const io of ["input", "output"]) {
      for (const reused of ["inline", "ref"]) {
        const text = JSON.stringify(z.toJSONSchema(form, { target, io, reused }));
        if (!schemas.has(text)) schemas.set(text, `${name}, ${target}, ${io}, ${reused}`);
      }
    }
  }
}
const version = createRequire(import.meta.url)("zod/package.json").version;
const lines = [...schemas].map(([text, name]) => `  ${JSON.stringify(name)}: ${text}`);
process.stdout.write(`{"zod": ${JSON.stringify(version)}, "schemas": {\n${lines.join(",\n")}\n}}\n`);
