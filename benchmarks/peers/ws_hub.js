'use strict';
// A hub by hand on node's `ws`: POST /hooks/NAME goes to every WebSocket and SSE reader of /events/NAME.  No history.
const http = require('http');
const { WebSocketServer } = require('ws');

const sockets = new Map();
const streams = new Map();

function join(rooms, name, member, source) {
  if (!rooms.has(name)) rooms.set(name, new Set());
  const room = rooms.get(name);
  room.add(member);
  source.on('close', () => {
    room.delete(member);
    if (room.size === 0 && rooms.get(name) === room) rooms.delete(name);
  });
}

function publish(name, body) {
  const readers = sockets.get(name) || [];
  for (const reader of readers) reader.send(body, { binary: false });
  const streaming = streams.get(name) || [];
  const record = `data: ${body}\n\n`;
  for (const stream of streaming) stream.write(record);
  return (readers.size || 0) + (streaming.size || 0);
}

const server = http.createServer((request, response) => {
  const [, room, name] = /^\/(hooks|events)\/(\w+)$/.exec(request.url) || [];
  if (request.method === 'POST' && room === 'hooks') {
    const parts = [];
    request.on('data', (part) => parts.push(part));
    request.on('end', () => {
      const answer = JSON.stringify({ status: 'ok', subscribers: publish(name, Buffer.concat(parts)) });
      response.writeHead(201, { 'Content-Type': 'application/json', 'Content-Length': answer.length }).end(answer);
    });
  } else if (room === 'events') {
    response.writeHead(200, { 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-store' });
    response.write(':\n\n');
    join(streams, name, response, response);
  } else {
    response.writeHead(404).end();
  }
});

const webSockets = new WebSocketServer({ noServer: true, clientTracking: false });
server.on('upgrade', (request, socket, head) => {
  const [, name] = /^\/events\/(\w+)$/.exec(request.url) || [];
  if (!name) return socket.destroy();
  return webSockets.handleUpgrade(request, socket, head, (reader) => {
    reader.on('error', () => {});
    join(sockets, name, reader, reader);
  });
});

server.listen({ port: Number(process.argv[2]), host: '127.0.0.1', backlog: 4096 });
