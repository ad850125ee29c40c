// What a user writes with a client that openapi-typescript made; prints what it got.
import createClient from "openapi-fetch";
import type { components, paths } from "./mailpool.js";

type Message = components["schemas"]["EmailMessage"];

declare const process: { argv: [string, string, string, string] };
const [, , baseUrl, key] = process.argv;

const mailpool = createClient<paths>({
  baseUrl,
  headers: { Authorization: `Bearer ${key}` },
});
const at = { path: { email_domain: "example.com" } };
const hello: Message = {
  from_email: "me@example.com",
  to_recipients: ["Ada <ada@example.org>"],
  subject: "Hello",
  raw_text_body: "It works.",
};

async function send(body: Message) {
  const { data, error } = await mailpool.POST("/{email_domain}/send", { params: { path: at.path }, body });
  if (!data || !("service_used" in data)) throw new Error(JSON.stringify(error ?? data));
  return data;
}

async function sendAll(messages: Message[]) {
  const { data, error } = await mailpool.POST("/{email_domain}/send", {
    params: { path: at.path, header: { "Idempotency-Key": "a-batch-in-typescript" } },
    body: { messages },
  });
  if (!data || !("results" in data)) throw new Error(JSON.stringify(error ?? data));
  return data.results.map(({ result }) => result);
}

async function problemsOf(body: Message) {
  const { error, response } = await mailpool.POST("/{email_domain}/send", { params: { path: at.path }, body });
  if (response.status !== 400 || !error || !("problems" in error)) throw new Error("It was taken.");
  return error.problems;
}

async function subjects() {
  const query = { outcome: "sent", recipient: "ada", limit: 10 } as const;
  const { data, error } = await mailpool.GET("/{email_domain}/messages", { params: { path: at.path, query } });
  if (!data) throw new Error(error.error);
  return data.messages.map(({ subject }) => subject);
}

// The compiler knows the fields: a name of another service's is none.
// @ts-expect-error
export const misspelt: Message = { ...hello, to: "ada@example.org" };

const file = { filename: "note.txt", content: btoa("It works.") };
const one = await send(hello);
const withFile = await send({ ...hello, subject: "A file", attachments: [file] });
const batch = await sendAll([hello, { ...hello, to_recipients: ["bob@example.org"], dry_run: true }]);
const problems = await problemsOf({ ...hello, subject: "", tags: ["é"] });

console.log(JSON.stringify({
  service: one.service_used,
  file: withFile.service_message_id,
  batch,
  problems: Object.keys(problems ?? {}).sort(),
  subjects: await subjects(),
}));
