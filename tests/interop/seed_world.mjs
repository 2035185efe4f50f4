// node-ipc's UDP program 'World', without the colours: `node seed_world.mjs <major version> <port>`. It answers each
// greeting, and ends when stdin does. The original also sets ipc.server.define, which none of these versions has.

const [version, port] = process.argv.slice(2);
const {default: ipc} = await import(`node-ipc-${version}`);

Object.assign(ipc.config, {id: 'world', retry: 1500, logInColor: false, networkPort: Number(port)});

ipc.serveNet('udp4', () => {
    ipc.server.on('message', (data, socket) => {
        ipc.log('got a message from ', data.from, ' : ', data.message);
        ipc.server.emit(socket, 'message', {from: ipc.config.id, message: `${data.message} world!`});
    });
});
ipc.server.on('connect', () => ipc.log('world can be heard'));  // `start` comes too early in 9 and 10
ipc.server.start();

process.stdin.on('close', () => process.exit()).resume();
