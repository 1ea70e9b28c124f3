// Hello for Deno: deno run --allow-net web.ts PORT
Deno.serve({ hostname: "127.0.0.1", port: Number(Deno.args[0]) }, () => new Response("hello\n"));
