// A node-ipc peer for the tests: `node peer.mjs <major version> <JSON list of event types>`. Commands come as JSON
// lines on stdin, each event of its server and clients is reported as a JSON line on stdout, and it ends when stdin
// does, so that it never outlives a test.

import {createHash} from 'node:crypto';
import {createInterface} from 'node:readline';

// Longer data is reported as {"$bytes", "$sha256"} of its JSON text: the tests are about node-ipc's sockets and not
// about this pipe.
const REPORTED_CHARACTERS = 4096;

// Events about connections, whose arguments are sockets and such.
const LIFECYCLE = ['start', 'connect', 'disconnect', 'destroy', 'close', 'socket.disconnected', 'error'];

const [version, types] = process.argv.slice(2);
const messages = JSON.parse(types);
const {default: ipc} = await import(`node-ipc-${version}`);
Object.assign(ipc.config, {silent: true, retry: 20});
const settingsAtFirst = {...ipc.config};
let echoing = false;
let delay = null;
let unanswered = 0;
let resets = 0;

const commands = {
    configure: ({settings}) => Object.assign(ipc.config, settings),
    echo: () => { echoing = true; },

    serve({path}) {
        ipc.serve(path);
        startServer();
    },
    serveNet({host, port, udpType}) {
        ipc.serveNet(host, port, udpType);
        startServer();
    },
    stop() {
        ipc.server.stop();
        report('server', 'stopped', null);  // nobody listens there from now on
    },
    broadcast: ({type, data}) => ipc.server.broadcast(type, revived(data)),

    // Bytes that need not be an event, past node-ipc: to all clients of the server, or from a client.
    writeToAll({hex}) {
        for (const socket of ipc.server.sockets) {
            socket.write(Buffer.from(hex, 'hex'));
        }
    },
    write: ({id, hex}) => ipc.of[id].socket.write(Buffer.from(hex, 'hex')),

    // UDP: `to` is {address, port}.
    emitTo: ({to, type, data}) => ipc.server.emit(to, type, revived(data)),
    addPeer: ({to}) => ipc.server.sockets.push(to),
    sendDatagram: ({to, hex}) => ipc.server.server.send(Buffer.from(hex, 'hex'), to.port, to.address),

    // Raw mode: to the client's server, or over UDP; a Buffer, or text in ipc.config.encoding.
    emitRaw({id, to, hex, text}) {
        const payload = hex === undefined ? text : Buffer.from(hex, 'hex');
        if (to) {
            ipc.server.emit(to, payload);
        } else {
            ipc.of[id].emit(payload);
        }
    },
    broadcastRaw: ({hex}) => ipc.server.broadcast(Buffer.from(hex, 'hex')),

    // As echo, but so long after a message came; and when one comes, report how many are unanswered.
    echoAfter: ({milliseconds}) => { delay = milliseconds; },

    connectTo({id, path}) {
        ipc.connectTo(id, path);
        reportEvents(ipc.of[id], id);
    },
    connectToNet({id, host, port}) {
        ipc.connectToNet(id, host, port);
        reportEvents(ipc.of[id], id);
    },
    emit: ({id, type, data}) => ipc.of[id].emit(type, revived(data)),
    emitNumbers({id, type, count}) {
        for (let number = 0; number < count; number++) {
            ipc.of[id].emit(type, number);
        }
    },
    disconnect: ({id}) => ipc.disconnect(id),

    // Which version of TLS a client's connection has.
    reportProtocol: ({id}) => report(id, 'protocol', ipc.of[id].socket.getProtocol()),

    // As if the process had just begun. What is over is not reported any more.
    reset() {
        resets += 1;
        ipc.server?.sockets?.forEach((socket) => socket.destroy?.());
        leave();
        ipc.server = false;
        for (const name of Object.keys(ipc.config)) {
            delete ipc.config[name];
        }
        Object.assign(ipc.config, settingsAtFirst);
        echoing = false;
        delay = null;
        unanswered = 0;
        report('peer', 'reset', null);
    },
};

function leave() {
    Object.keys(ipc.of).forEach((id) => ipc.disconnect(id));
    if (ipc.server?.server) {
        ipc.server.stop();  // removes the socket file
    }
}

function startServer() {
    reportEvents(ipc.server, 'server');
    for (const type of messages) {
        ipc.server.on(type, (data, socket) => answer(socket, type, data));
    }
    ipc.server.on('data', (data, socket) => answer(socket, data));  // raw mode
    ipc.server.start();
}

function answer(socket, ...event) {
    if (delay !== null) {
        unanswered += 1;
        report('server', 'unanswered', unanswered);
        const before = resets;
        setTimeout(() => {
            if (resets === before) {
                unanswered -= 1;
                ipc.server.emit(socket, ...event);
            }
        }, delay);
    } else if (echoing) {
        ipc.server.emit(socket, ...event);
    }
}

// Type by type, because a handler for '*' makes node-ipc 9's emitter fail on Node.js 10 to 59, whose version numbers it
// reads one digit of.
function reportEvents(emitter, of) {
    const before = resets;
    const reportOf = (event, data) => resets === before && report(of, event, data);
    for (const event of LIFECYCLE.filter((event) => event !== 'error')) {
        emitter.on(event, () => reportOf(event, null));
    }
    emitter.on('error', (error) => {
        reportOf('error', String(error?.message ?? error));
        reportOf('error code', error?.code ?? null);
    });
    for (const type of messages) {
        emitter.on(type, (data) => reportOf(type, abridged(data)));
    }
    emitter.on('data', (data) => reportOf('data', data.toString('hex')));  // raw mode
}

function report(of, event, data) {
    process.stdout.write(`${JSON.stringify({of, event, data})}\n`);
}

function abridged(data) {
    const text = JSON.stringify(data);
    return text?.length > REPORTED_CHARACTERS
        ? {$bytes: Buffer.byteLength(text), $sha256: createHash('sha256').update(text).digest('hex')}
        : data;
}

// What JSON cannot say, or not briefly: {"$undefined": true}, {"$date": ISO time}, {"$repeat": [text, times]}.
function revived(data) {
    if (data?.$undefined) {
        return undefined;
    }
    if (data?.$date) {
        return new Date(data.$date);
    }
    return data?.$repeat ? data.$repeat[0].repeat(data.$repeat[1]) : data;
}

const input = createInterface({input: process.stdin});
input.on('line', (line) => {
    const {command, ...options} = JSON.parse(line);
    try {
        commands[command](options);
    } catch (error) {
        if (!error.code?.startsWith('ERR_IPC_')) {
            throw error;
        }
        report(options.id ?? 'server', 'thrown', error.code);  // node-ipc 14 refuses to do it
    }
});
input.on('close', () => {
    leave();
    process.exit();
});
