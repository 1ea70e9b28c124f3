// For Node's own server.
const http = require('http'), counting = require('./counting');
http.createServer((request, response) => {
    const answer = { '/count': counting.count, '/draw': counting.draw }[request.url];
    response.end(answer ? answer() : 'ready');
}).listen(8000, '127.0.0.1');
