// The application by socket.io-client, as NestJS's gateways are spoken to.

const runSocketIo = (io, { Application, CAPABILITIES }, url, token, tell, options = {}) => {
  const socket = io(url, {
    transports: ["websocket"],
    auth: (give) => give({ token }),
    reconnectionDelay: 50,
    reconnectionDelayMax: 200,
    ...options,
  })
  const application = new Application((type, body) => socket.emit(type, body), tell)
  socket.on("connect", () => tell("connect", socket.id))
  socket.on("connection", async ({ clientId, limits }) => {
    tell("connection", clientId, limits)
    tell("registered", await socket.emitWithAck("capability", { capabilities: CAPABILITIES, app: { name: "socketio" } }))
  })
  for (const type of ["command", "cancel", "error", "ack", "pong"]) socket.on(type, (frame) => application.take(type, frame))
  socket.on("connect_error", ({ message, data }) => tell("connect_error", message, data ?? null))
  socket.on("disconnect", (reason) => tell("disconnect", reason))
  socket.io.on("ping", () => tell("ping"))
  return socket
}

if (typeof module !== "undefined") module.exports = { runSocketIo }
