// Hello for Node: node web.js PORT
require('http').createServer((request, response) => {
    response.setHeader('Content-Length', 6);
    response.end('hello\n');
}).listen(Number(process.argv[2]), '127.0.0.1');
