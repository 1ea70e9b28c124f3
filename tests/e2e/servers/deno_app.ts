// For Deno's own server.
let counter = 0;
const seen: object[] = [];

function count(): string {
  counter++;
  seen.push({});
  Deno.writeTextFileSync("/tmp/count", "x", { append: true });
  return `${counter} ${Deno.statSync("/tmp/count").size} ${seen.length}`;
}

function draw(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  return `${bytes.join("-")} ${crypto.randomUUID()}`;
}

Deno.serve({ hostname: "127.0.0.1", port: 8000 }, (request) => {
  const path = new URL(request.url).pathname;
  return new Response(path === "/count" ? count() : path === "/draw" ? draw() : "ready");
});
