// Node's child_process: each way to start a child, its pipes, messages, signals and errors.
'use strict';
const { spawn, spawnSync, exec, execFile, execFileSync, fork } = require('child_process');
const { once } = require('events');
const fs = require('fs');

if (process.argv[2] === 'child') {
  process.on('message', (message) => {
    if (message === 'end') {
      process.disconnect();
      return;
    }
    process.send({ heard: message, parent: process.ppid > 0 });
  });
  return;
}

async function text(stream) {
  let all = '';
  for await (const part of stream) all += part;
  return all;
}

async function ended(child) {
  const [code, signal] = await once(child, 'close');
  return `${code} ${signal}`;
}

async function main() {
  // Pipes in both directions, more than a pipe holds.
  const cat = spawn('cat');
  const length = 1 << 20;
  cat.stdin.end('x'.repeat(length));
  const [copied, catEnd] = await Promise.all([text(cat.stdout), ended(cat)]);
  console.log('cat', copied.length === length, catEnd);

  // Status, signal, standard error.
  const failing = spawn('sh', ['-c', 'echo out; echo err >&2; exit 7']);
  console.log('sh', await Promise.all([text(failing.stdout), text(failing.stderr), ended(failing)]));
  const sleeper = spawn('sleep', ['100']);
  await once(sleeper, 'spawn');
  console.log('kill', sleeper.kill('SIGUSR1'), await ended(sleeper), sleeper.killed);
  console.log('kill again', sleeper.kill('SIGTERM'));

  // A trap that answers.
  const trapping = spawn('sh', ['-c', "trap 'echo caught; exit 3' TERM; echo ready; while :; do sleep 0.05; done"]);
  await once(trapping.stdout, 'data');
  trapping.kill();
  console.log('trap', await Promise.all([text(trapping.stdout), ended(trapping)]));

  // Programs that are not there or cannot be started.
  for (const [name, options] of [['no-such-program', {}], ['/etc/passwd', {}], ['true', { cwd: '/none' }]]) {
    const [error] = await once(spawn(name, options), 'error');
    console.log('error', error.code, error.syscall);
  }

  // Environment, directory, descriptors beyond the third, input from a file.
  const set = spawnSync('sh', ['-c', 'echo $WORD; pwd; echo three >&3; cat <&4'], {
    env: { WORD: 'word', PATH: process.env.PATH },
    cwd: '/tmp',
    stdio: ['ignore', 'pipe', 'pipe', 'pipe', fs.openSync('/etc/shells')],
  });
  console.log('set', set.status, String(set.output[1]).split('\n').slice(0, 3), String(set.output[3]));

  // Limits on time and output.
  const late = spawnSync('sleep', ['100'], { timeout: 300, killSignal: 'SIGKILL' });
  console.log('late', late.status, late.signal, late.error.code);
  const much = spawnSync('head', ['-c', '100000', '/dev/zero'], { maxBuffer: 1000 });
  console.log('much', much.error.code);
  const aborting = new AbortController();
  const aborted = spawn('sleep', ['100'], { signal: aborting.signal });
  const aborts = once(aborted, 'error');
  aborting.abort();
  const [abort] = await aborts;
  console.log('abort', abort.name);

  await new Promise((resolve) => {
    exec('echo $((6*7)) | tr 4 5; exit 2', (error, out) => resolve(console.log('exec', error.code, out)));
  });
  await new Promise((resolve) => {
    execFile('echo', ['$HOME', 'a b'], (error, out) => resolve(console.log('execFile', error, out)));
  });
  console.log('execFileSync', String(execFileSync('wc', ['-c'], { input: 'y'.repeat(300000) })).trim());
  try {
    execFileSync('false');
  } catch (error) {
    console.log('thrown', error.status, error.signal);
  }

  // A session of its own, which outlives nobody here.
  const detached = spawn('sh', ['-c', 'test "$(ps -o sid= -p $$)" -eq $$ && echo leads'], { detached: true });
  console.log('detached', await Promise.all([text(detached.stdout), ended(detached)]));

  // Messages over a socket.
  const child = fork(__filename, ['child']);
  for (const message of ['a', { deep: [1, null, 'ü'] }, 'z'.repeat(300000)]) {
    child.send(message);
    const [answer] = await once(child, 'message');
    console.log('message', JSON.stringify(answer).length, answer.parent);
  }
  child.send('end');
  console.log('fork', await ended(child), child.connected);

  // Many at once.
  const many = [];
  for (let number = 0; number < 40; number++) {
    const one = spawn('sh', ['-c', `echo ${number}; exit ${number}`]);
    many.push(Promise.all([text(one.stdout), ended(one)]));
  }
  console.log('many', JSON.stringify(await Promise.all(many)));
}

main();
