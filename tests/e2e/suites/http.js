// Node's http over loopback TCP and over a UNIX socket: bodies, chunks, kept connections, ends.
'use strict';
const http = require('http');
const net = require('net');
const { once } = require('events');

const server = http.createServer(async (request, response) => {
  let length = 0;
  for await (const part of request) length += part.length;
  if (request.url === '/chunks') {
    for (let number = 0; number < 20; number++) response.write('c'.repeat(5000));
    response.end();
  } else if (request.url === '/cut') {
    response.writeHead(200, { 'Content-Length': 1000 });
    response.write('half', () => response.destroy());
  } else if (request.url === '/slow') {
    setTimeout(() => response.end('late'), 2000);
  } else {
    response.end(`${request.method} ${request.url} ${length}`);
  }
});
server.on('upgrade', (request, socket) => {
  socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n');
  socket.pipe(socket);
});

function ask(place, options, body) {
  return new Promise((resolve) => {
    const request = http.request({ ...place, ...options }, async (response) => {
      let all = '';
      try {
        for await (const part of response) all += part;
        resolve(`${response.statusCode} ${all.length > 50 ? all.length : all}`);
      } catch (error) {
        resolve(`${error.code} after ${all.length}`);
      }
    });
    request.on('error', (error) => resolve(error.code));
    request.on('timeout', () => request.destroy());
    request.end(body);
  });
}

async function round(place) {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 4 });
  console.log(await ask(place, { path: '/plain', agent }));
  console.log(await ask(place, { path: '/body', method: 'POST', agent }, 'b'.repeat(3 << 20)));
  console.log(await ask(place, { path: '/chunks', agent }));
  console.log(await ask(place, { path: '/cut', agent }));
  console.log(await ask(place, { path: '/slow', agent, timeout: 200 }));
  const all = [...Array(60).keys()].map((number) => ask(place, { path: `/${number}`, agent }));
  console.log((await Promise.all(all)).join(','));
  agent.destroy();
  const upgrading = http.request({ ...place, headers: { Connection: 'upgrade', Upgrade: 'echo' } });
  upgrading.end();
  const [, socket] = await once(upgrading, 'upgrade');
  socket.write('ping');
  console.log(String((await once(socket, 'data'))[0]));
  socket.end();
  await once(socket, 'close');
}

async function main() {
  for (const place of [{ host: '127.0.0.1', port: 8402 }, { socketPath: '/tmp/suite-http' }]) {
    server.listen(place.socketPath ? { path: place.socketPath } : place);
    await once(server, 'listening');
    console.log(typeof server.address() === 'string' ? server.address() : JSON.stringify(server.address()));
    await round(place);
    server.close();
    server.closeAllConnections();
    await once(server, 'close');
    console.log(await ask(place, { path: '/closed' }));
  }
  const taken = net.createServer().listen(8402, '127.0.0.1');
  await once(taken, 'listening');
  const [error] = await once(net.createServer().listen(8402, '127.0.0.1'), 'error');
  console.log(error.code);
  taken.close();
}

main();
