// The application in the form of the original project's protocol document: every message has an id and a timestamp, and
// a response names the `id` of its command.

const runDocument = (WebSocket, { Application, CAPABILITIES }, url, token, tell) => {
  let socket
  const send = (type, body) => socket.send(JSON.stringify({ id: crypto.randomUUID(), type, timestamp: Date.now(), ...body }))
  const application = new Application(send, tell)
  const take = {
    connection: ({ clientId, limits }) => {
      tell("connection", clientId, limits)
      send("capability", { capabilities: CAPABILITIES })
    },
    ack: () => tell("registered", { status: "success" }),
    command: ({ id, timestamp, command, target, action, parameters }) => {
      tell("documented", { command, target, action: action ?? null, late: Date.now() - timestamp })
      application.take("command", { requestId: id, target, action, parameters })
    },
  }
  const connect = () => {
    socket = new WebSocket(url, ["agentbridge.v1", `bearer.${token}`])
    socket.onmessage = ({ data }) => {
      const { type, ...frame } = JSON.parse(data)
      if (take[type]) take[type](frame)
      else tell(type, frame)
    }
    socket.onerror = () => tell("failed")
    socket.onclose = ({ code }) => {
      tell("disconnect", code)
      if (code !== 1000) setTimeout(connect, 100)
    }
  }
  connect()
  return { disconnect: () => socket.close(1000) }
}

if (typeof module !== "undefined") module.exports = { runDocument }
