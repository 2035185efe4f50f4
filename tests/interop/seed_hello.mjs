// node-ipc's UDP program 'Hello', without the colours: `node seed_hello.mjs <major version> <port> <port of world>`. It
// greets world, which has to be there, and ends when stdin does. See seed_world.mjs.

const [version, port, worldPort] = process.argv.slice(2);
const {default: ipc} = await import(`node-ipc-${version}`);

Object.assign(ipc.config, {id: 'hello', retry: 1500, logInColor: false, networkPort: Number(worldPort)});

ipc.serveNet(Number(port), 'udp4', () => {
    ipc.server.on('message', (data) => ipc.log('got a message from ', data.from, ' : ', data.message));
    ipc.server.emit(
        {address: 'localhost', port: ipc.config.networkPort},
        'message',
        {from: ipc.config.id, message: 'Hello'},
    );
});
ipc.server.start();

process.stdin.on('close', () => process.exit()).resume();
