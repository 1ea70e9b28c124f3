// Node's cluster: workers that share one port by both ways of scheduling, and one that dies.
'use strict';
const cluster = require('cluster');
const http = require('http');
const { once } = require('events');

if (cluster.isWorker) {
  const server = http.createServer((request, response) => {
    response.setHeader('Connection', 'close');
    response.end(`${cluster.worker.id}`);
  });
  server.listen(Number(process.env.SUITE_PORT), '127.0.0.1');
  process.on('message', (message) => {
    if (message === 'crash') process.abort();
    if (message === 'exit') process.exit(5);
    process.send({ echo: message });
  });
  return;
}

function get(port) {
  return new Promise((resolve, reject) => {
    http.get({ port, host: '127.0.0.1', agent: false }, async (response) => {
      let all = '';
      for await (const part of response) all += part;
      resolve(all);
    }).on('error', reject);
  });
}

async function round(policy, port) {
  cluster.schedulingPolicy = policy;
  const workers = [1, 2, 3].map(() => cluster.fork({ SUITE_PORT: port }));
  await Promise.all(workers.map((worker) => once(worker, 'listening')));
  const ids = new Set(workers.map((worker) => String(worker.id)));
  const answers = await Promise.all([...Array(30).keys()].map(() => get(port)));
  console.log('answers', answers.length, answers.every((id) => ids.has(id)));
  if (policy === cluster.SCHED_RR) console.log('all answer', new Set(answers).size);
  for (const worker of workers) {
    worker.send('hello');
    const [message] = await once(worker, 'message');
    console.log(JSON.stringify(message));
  }
  workers[0].send('exit');
  console.log('exit', (await once(workers[0], 'exit')).join(' '));
  workers[1].process.kill('SIGKILL');
  console.log('killed', (await once(workers[1], 'exit')).join(' '));
  console.log('still', (await get(port)) === String(workers[2].id));
  workers[2].disconnect();
  console.log('left', (await once(workers[2], 'exit')).join(' '), workers[2].exitedAfterDisconnect);
  await get(port).then(() => console.log('?'), (error) => console.log(error.code));
}

async function main() {
  // How connections are given out is settled by the first worker.
  await round(cluster.SCHED_RR, 8401);
  cluster.disconnect();
}

main();
