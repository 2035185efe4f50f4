// A node-ipc peer that speaks JSON-RPC 2.0 by the npm package json-rpc-2.0, with peer.mjs's manners: `node rpc_peer.mjs
// <major version>`; commands come as JSON lines on stdin, what happens is reported as JSON lines on stdout, and it ends
// when stdin does. The data of an `rpc` event is a JSON-RPC object, or an array of them, and that is all there is to it.

import {createInterface} from 'node:readline';

import rpc from 'json-rpc-2.0';

const {JSONRPCClient, JSONRPCErrorException, JSONRPCServer, JSONRPCServerAndClient} = rpc;

const [version] = process.argv.slice(2);
const {default: ipc} = await import(`node-ipc-${version}`);
Object.assign(ipc.config, {silent: true, retry: 20});
let notes = [];
let caller = null;  // of methods of the server we are connected to

// What both ends answer. `end` is the other one's, if it can be called.
const methods = {
    add: ([augend, addend]) => augend + addend,
    greet: ({name}) => `hello ${name}`,
    same: ([value]) => value,
    nothing: () => {},
    later: ([milliseconds, value]) => new Promise((resolve) => { setTimeout(resolve, milliseconds, value); }),
    note: (params) => { notes.push(params); },
    notes: () => notes,
    fail: () => { throw new Error('in Node'); },
    refuse: () => { throw new JSONRPCErrorException('not today', 17, {tomorrow: [1, null]}); },
    askBack: ([method, params], {end}) => end.request(method, params),
    hangUp: (params, {socket}) => new Promise(() => { socket.destroy(); }),
};

function withMethods(end) {
    for (const [name, method] of Object.entries(methods)) {
        end.addMethod(name, method);
    }
    return end;
}

// A server that answers, as the package's documentation has it.
function answering() {
    const server = withMethods(new JSONRPCServer({errorListener() {}}));
    return async (data, socket, emit) => {
        const response = await server.receive(data, {socket});
        if (response) {
            emit(response);
        }
    };
}

// An end that can be called and can call: one for each connection.
function bothWays(emit) {
    const errorListener = (message) => report('error', message);
    const server = new JSONRPCServer({errorListener() {}});
    const client = new JSONRPCClient(async (request) => emit(request));
    return withMethods(new JSONRPCServerAndClient(server, client, {errorListener}));
}

const commands = {
    // `both`: the server can call, too.
    serve({both, path, host, port}) {
        if (path) {
            ipc.serve(path);
        } else {
            ipc.serveNet(host, port);
        }
        const answer = answering();
        const ends = new WeakMap();
        ipc.server.on('start', () => report('start', null));
        ipc.server.on('rpc', async (data, socket) => {
            const emit = (payload) => ipc.server.emit(socket, 'rpc', payload);
            if (!both) {
                await answer(data, socket, emit);
                return;
            }
            if (!ends.has(socket)) {
                ends.set(socket, bothWays(emit));
            }
            const end = ends.get(socket);
            await end.receiveAndSend(data, {socket, end}).catch(() => {});  // the errorListener reports it
        });
        ipc.server.start();
    },

    // `both`: the client can be called, too.
    connect({both, path, host, port}) {
        if (path) {
            ipc.connectTo('world', path);
        } else {
            ipc.connectToNet('world', host, port);
        }
        const world = ipc.of.world;
        const emit = (payload) => world.emit('rpc', payload);
        caller = both ? bothWays(emit) : new JSONRPCClient(async (request) => emit(request));
        world.on('connect', () => report('connect', null));
        world.on('rpc', async (data) => {
            if (both) {
                await caller.receiveAndSend(data, {end: caller}).catch(() => {});
            } else {
                caller.receive(data);
            }
        });
    },

    // The outcome is reported with its `key`.
    request({key, method, params}) {
        caller.request(method, params).then(
            (result) => report('result', {key, result}),
            ({code, message, data}) => report('refused', {key, code, message, data}),
        );
    },
    batch: ({requests}) => caller.requestAdvanced(requests).then((responses) => report('responses', responses)),
    notify: ({method, params}) => caller.notify(method, params),

    // As if the process had just begun.
    reset() {
        ipc.server?.sockets?.forEach((socket) => socket.destroy());
        leave();
        ipc.server = false;
        caller = null;
        notes = [];
        report('reset', null);
    },
};

function leave() {
    Object.keys(ipc.of).forEach((id) => ipc.disconnect(id));
    if (ipc.server?.server) {
        ipc.server.stop();
    }
}

function report(event, data) {
    process.stdout.write(`${JSON.stringify({of: 'peer', event, data})}\n`);
}

const input = createInterface({input: process.stdin});
input.on('line', (line) => {
    const {command, ...options} = JSON.parse(line);
    commands[command](options);
});
input.on('close', () => {
    leave();
    process.exit();
});
