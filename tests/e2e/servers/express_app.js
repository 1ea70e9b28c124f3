// For Express.
const express = require('express'), counting = require('./counting');
const app = express();
app.get('/', (request, response) => response.send('ready'));
app.get('/count', (request, response) => response.send(counting.count()));
app.get('/draw', (request, response) => response.send(counting.draw()));
app.listen(8000, '127.0.0.1');
