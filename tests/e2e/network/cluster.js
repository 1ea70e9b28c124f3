// Workers of Node's cluster that share a port, and a master that asks it.
const cluster = require('cluster');
const http = require('http');

if (cluster.isPrimary) {
  let listening = 0;
  for (let number = 0; number < 2; number++) cluster.fork();
  cluster.on('listening', async (worker, address) => {
    if (++listening < 2) return;
    const workers = new Set();
    for (let number = 0; number < 20; number++) {
      const answer = await fetch(`http://127.0.0.1:${address.port}/${number}`, { headers: { connection: 'close' } });
      const [path, id] = (await answer.text()).split(' ');
      if (path !== `/${number}`) throw new Error(path);
      workers.add(id);
    }
    console.log('asked', workers.size, 'workers');
    for (const id in cluster.workers) cluster.workers[id].kill();
  });
} else {
  http.createServer((request, answer) => answer.end(`${request.url} ${cluster.worker.id}`)).listen(18014, '127.0.0.1');
}
