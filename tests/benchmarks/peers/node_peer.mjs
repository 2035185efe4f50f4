// node-ipc 14.0.0 as a peer of the benchmark: `node node_peer.mjs ROLE SPEC`; see common.py for what that means. The same
// in everything as nodeipc_peer.py, which has the comments.

import {readFileSync} from 'node:fs';
import {fileURLToPath} from 'node:url';
import {performance} from 'node:perf_hooks';

const HERE = fileURLToPath(new URL('.', import.meta.url));
const MODULES = `${HERE}../../interop/node_modules`;
const HOST = '127.0.0.1';
const ONE_WAY = ['oneway', 'batch'];
const PATTERNS = ['latency', 'pipeline', 'oneway', 'batch', 'broadcast', 'many', 'workers0', 'idle'];
const PORT_ATTEMPTS = 50;

const [role, text] = process.argv.slice(2);
const spec = JSON.parse(text);
if (!PATTERNS.includes(spec.pattern) || (spec.transport === 'udp' && !['latency', 'workers0'].includes(spec.pattern))) {
    process.exit(3);
}

const {default: ipc} = await import(`${MODULES}/node-ipc-14/node-ipc.js`);
const installed = JSON.parse(readFileSync(`${MODULES}/node-ipc-14/package.json`, 'utf8')).version;
if (installed !== '14.0.0') {
    fail(`node-ipc ${installed} is installed where 14.0.0 belongs`);
}
const version = `node-ipc ${installed}, Node ${process.versions.node}, OpenSSL ${process.versions.openssl}`;

Object.assign(ipc.config, {id: 'world', silent: true, maxConnections: Math.max(100, spec.clients + spec.idle + 1)});
if (spec.transport === 'tls') {
    ipc.config.tls = role === 'server'
        ? {private: spec.tls.key, public: spec.tls.cert}
        : {trustedConnections: spec.tls.cert};
}
const payload = makePayload();

function fail(reason) {
    process.stderr.write(`node_peer.mjs ${role}: ${reason}\n`);
    process.exit(1);
}

function makePayload() {
    if (spec.payload === 'structured') {
        return JSON.parse(readFileSync(`${HERE}structured.json`, 'utf8'));
    }
    const words = '0123456789 abcdefghijklmnopqrstuvwxyz ';
    const long = words.repeat(Math.floor(spec.size / words.length) + 1).slice(0, spec.size);
    return JSON.parse(JSON.stringify(long));  // one string, not a tree of them
}

// Whether two values that JSON can carry are the same.
function same(one, other) {
    if (one === other) {
        return true;
    }
    if (typeof one !== 'object' || typeof other !== 'object' || one === null || other === null) {
        return false;
    }
    if (Array.isArray(one) !== Array.isArray(other)) {
        return false;
    }
    const names = Object.keys(one);
    if (names.length !== Object.keys(other).length) {
        return false;
    }
    for (const name of names) {
        if (!Object.hasOwn(other, name) || !same(one[name], other[name])) {
            return false;
        }
    }
    return true;
}

// Make a server, give it its handlers, and call back with its port. node-ipc takes port 0 for none, so one is tried
// after the other; they are not among those that the system gives to whoever asks for any.
function listen(prepare, ready, attempts = PORT_ATTEMPTS) {
    const port = 10000 + Math.floor(Math.random() * 20000);
    if (spec.transport === 'unix') {
        ipc.serve(spec.address);
    } else {
        ipc.serveNet(HOST, port, spec.transport === 'udp' ? 'udp4' : undefined);
    }
    prepare(ipc.server);
    ipc.server.on('start', () => ready(spec.transport === 'unix' ? 0 : port));
    ipc.server.on('error', (error) => {
        if (error.code === 'EADDRINUSE' && spec.transport !== 'unix' && attempts) {
            listen(prepare, ready, attempts - 1);
        } else {
            fail(error);
        }
    });
    ipc.server.start();
}

function serve() {
    let handled = 0;
    let wrong = 0;
    const prepare = (server) => {
        if (ONE_WAY.includes(spec.pattern)) {
            server.on('message', (data) => {
                if (!same(data, payload)) {
                    wrong += 1;
                }
                handled += 1;
            });
        } else {
            server.on('message', (data, socket) => {
                handled += 1;
                server.emit(socket, 'message', data);
            });
        }
        server.on('round', (count) => {
            for (let sent = 0; sent < count; sent++) {
                server.broadcast('message', payload);
            }
        });
        server.on('join', (data, socket) => server.emit(socket, 'joined', 0));
        server.on('count', (data, socket) => server.emit(socket, 'counted', [handled, wrong]));
    };
    listen(prepare, (port) => process.stdout.write(`ready ${port}\n`));
    process.stdin.on('end', () => {
        ipc.server.stop();
        process.exit();
    });
    process.stdin.resume();
}

// The client

// A connection, or for UDP a socket and the server's address.
function makeLink(name) {
    if (spec.transport === 'udp') {
        const to = {address: HOST, port: spec.address};
        return new Promise((resolve) => {
            listen(() => {}, () => resolve({
                emit: (type, data) => ipc.server.emit(to, type, data),
                on: (type, handler) => ipc.server.on(type, handler),
            }));
        });
    }
    if (spec.transport === 'unix') {
        ipc.connectTo(name, spec.address);
    } else {
        ipc.connectToNet(name, HOST, spec.address);
    }
    const client = ipc.of[name];
    client.on('error', (error) => fail(error));
    client.on('disconnect', () => fail('the connection was lost'));
    return new Promise((resolve) => client.on('connect', () => resolve({
        emit: client.emit.bind(client),
        on: client.on.bind(client),
    })));
}

const next = (link, type) => new Promise((resolve) => { link.hear[type] = resolve; });

async function linked(count) {
    const links = await Promise.all([...Array(count).keys()].map((number) => makeLink(`client${number}`)));
    await Promise.all(links.map((link) => {
        link.hear = {};
        for (const type of ['joined', 'counted']) {
            link.on(type, (data) => link.hear[type](data));
        }
        const joined = next(link, 'joined');
        link.emit('join', 0);
        return joined;
    }));
    return links;
}

async function verify(link, expected) {
    const counted = next(link, 'counted');
    link.emit('count', 0);
    const [handled, wrong] = await counted;
    checkCount('the server has handled', handled, expected);
    if (wrong) {
        fail(`${wrong} messages were damaged on the way to the server`);
    }
}

function checkCount(what, found, expected) {
    if (found !== expected) {
        fail(`${what}: ${found} of ${expected} messages`);
    }
}

const rate = (messages, seconds) => ({messages, seconds, p50_us: null, p99_us: null, version});

function roundTrips(begin, ends) {
    const moments = [begin, ...ends].slice(spec.warmup);
    const times = moments.slice(1).map((moment, index) => moment - moments[index]).sort((one, other) => one - other);
    const percentile = (share) => times[Math.max(0, Math.ceil(share * times.length) - 1)] * 1000;
    return {
        ...rate(times.length, (moments[times.length] - moments[0]) / 1000), p50_us: percentile(0.5), p99_us: percentile(0.99)
    };
}

async function oneAtATime() {
    const [link] = await linked(1 + spec.idle);
    const total = spec.warmup + spec.count;
    const moments = [];
    let begin;
    await new Promise((resolve) => {
        link.on('message', (data) => {
            moments.push(performance.now());
            if (!same(data, payload)) {
                fail('a message came back damaged');
            } else if (moments.length < total) {
                link.emit('message', payload);
            } else {
                resolve();
            }
        });
        begin = performance.now();
        link.emit('message', payload);
    });
    await verify(link, total);
    checkCount('answers', moments.length, total);
    return roundTrips(begin, moments);
}

function makeFlow(link) {
    const flow = {answers: 0, expected: 0, unsent: 0, done: null};
    link.on('message', (data) => {
        if (!same(data, payload)) {
            fail('a message came back damaged');
        }
        flow.answers += 1;
        if (flow.unsent) {
            flow.unsent -= 1;
            link.emit('message', payload);
        } else if (flow.answers === flow.expected) {
            flow.done();
        }
    });
    flow.start = (count) => new Promise((resolve) => {
        const burst = Math.min(spec.window, count);
        flow.done = resolve;
        flow.expected += count;
        flow.unsent = count - burst;
        for (let sent = 0; sent < burst; sent++) {
            link.emit('message', payload);
        }
    });
    return flow;
}

async function inFlight() {
    const counts = [spec.warmup, spec.count].map((count) => Math.floor(count / spec.clients) || 1);
    const links = await linked(spec.clients);
    const flows = links.map(makeFlow);
    let seconds;
    for (const count of counts) {
        const begin = performance.now();
        await Promise.all(flows.map((flow) => flow.start(count)));
        seconds = (performance.now() - begin) / 1000;
    }
    for (const link of links) {
        await verify(link, (counts[0] + counts[1]) * spec.clients);
    }
    flows.forEach((flow) => checkCount('answers', flow.answers, counts[0] + counts[1]));
    return rate(counts[1] * spec.clients, seconds);
}

async function oneWay() {
    const [link] = await linked(1);
    let total = 0;
    let seconds;
    for (const count of [spec.warmup, spec.count]) {
        total += count;
        const begin = performance.now();
        for (let sent = 0; sent < count; sent++) {
            link.emit('message', payload);
        }
        await verify(link, total);
        seconds = (performance.now() - begin) / 1000;
    }
    return rate(spec.count, seconds);
}

async function broadcast() {
    const links = await linked(spec.clients);
    let expected = 0;
    let missing = 0;
    let done;
    const listeners = links.map((link) => {
        const listener = {heard: 0};
        link.on('message', (data) => {
            if (!same(data, payload)) {
                fail('a message came damaged');
            }
            listener.heard += 1;
            if (listener.heard === expected) {
                missing -= 1;
                if (!missing) {
                    done();
                }
            }
        });
        return listener;
    });
    let seconds;
    for (const count of [spec.warmup, spec.count]) {
        const begin = performance.now();
        for (let sent = 0; sent < count; sent += spec.window) {
            const size = Math.min(spec.window, count - sent);
            expected += size;
            missing = links.length;
            await new Promise((resolve) => {
                done = resolve;
                links[0].emit('round', size);
            });
        }
        seconds = (performance.now() - begin) / 1000;
    }
    for (const link of links) {
        await verify(link, 0);
    }
    listeners.forEach(({heard}) => checkCount('heard', heard, spec.warmup + spec.count));
    return rate(spec.count * spec.clients, seconds);
}

if (role === 'server') {
    serve();
} else {
    const measure = {
        latency: oneAtATime, workers0: oneAtATime, idle: oneAtATime, pipeline: inFlight, many: inFlight, oneway: oneWay,
        batch: oneWay, broadcast,
    }[spec.pattern];
    const result = await measure();
    process.stdout.write(`${JSON.stringify(result)}\n`, () => process.exit());
}
