// State that outlives a request: a number, a file, a list, a generator.
const crypto = require('crypto'), fs = require('fs');
let counter = 0;
const seen = [];
exports.count = () => {
    counter++;
    seen.push({});
    fs.appendFileSync('/tmp/count', 'x');
    return `${counter} ${fs.statSync('/tmp/count').size} ${seen.length}`;
};
exports.draw = () => [
    crypto.randomBytes(8).toString('hex'),
    crypto.randomUUID(),
    globalThis.crypto ? globalThis.crypto.randomUUID() : crypto.webcrypto.randomUUID(),
    crypto.randomInt(2 ** 47),
].join(' ');
