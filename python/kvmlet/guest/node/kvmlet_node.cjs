// Loaded before a program of Node that kvmlet serves (node --require). Node draws values of randomUUID and randomInt
// ahead and keeps them in its heap, where all forks of a frozen server would find the same ones. Here each is drawn
// when it is asked for, from the generator that is seeded anew in each fork.
'use strict';

const crypto = require('node:crypto');
const { syncBuiltinESMExports } = require('node:module');

const { randomBytes, randomInt, randomUUID } = crypto;
// Of values that randomInt draws, as Node has them (lib/internal/crypto/random.js).
const BYTES = 6;
const VALUES_MAX = 2 ** 48 - 1;

function isUuidOptions(options) {
    return options === undefined || (typeof options === 'object' && options !== null);
}

if (randomUUID) {
    crypto.randomUUID = function (options) {
        // What is wrong with them Node says itself.
        if (!isUuidOptions(options)) return randomUUID(options);
        return randomUUID({ ...options, disableEntropyCache: true });
    };
    const web = crypto.webcrypto && Object.getPrototypeOf(crypto.webcrypto);
    const drawn = web && web.randomUUID;
    if (drawn) {
        web.randomUUID = function randomUUID() {
            if (!(this instanceof crypto.webcrypto.constructor)) return drawn.call(this);
            return crypto.randomUUID();
        };
    }
}

if (randomInt) {
    crypto.randomInt = function (min, max, callback) {
        let [from, to, told] = [min, max, callback];
        if (to === undefined || typeof to === 'function') [from, to, told] = [0, min, max];
        const range = to - from;
        const isValid =
            Number.isSafeInteger(from) && Number.isSafeInteger(to) && range > 0 && range <= VALUES_MAX;
        if (!isValid || (told !== undefined && typeof told !== 'function')) {
            return randomInt(min, max, callback);
        }
        // Values beyond the last whole range would make the first ones likelier.
        const end = VALUES_MAX - (VALUES_MAX % range);
        let value;
        do {
            value = randomBytes(BYTES).readUIntBE(0, BYTES);
        } while (value >= end);
        value = (value % range) + from;
        if (told === undefined) return value;
        process.nextTick(told, undefined, value);
    };
}

for (const name of ['randomInt', 'randomUUID']) {
    if (crypto[name]) Object.defineProperty(crypto[name], 'name', { value: name });
}
syncBuiltinESMExports();
