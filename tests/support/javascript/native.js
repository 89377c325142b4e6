// The application by a plain WebSocket, in the protocol's own frames.

const runNative = (WebSocket, { Application, CAPABILITIES }, url, token, tell) => {
  let socket
  const application = new Application((type, body) => socket.send(JSON.stringify({ type, ...body })), tell)
  const connect = () => {
    socket = new WebSocket(url, ["agentbridge.v1", `bearer.${token}`])
    socket.onmessage = ({ data }) => {
      const { type, ...frame } = JSON.parse(data)
      if (type === "ack") return tell("registered", { status: "success" })
      if (type !== "connection") return application.take(type, frame)
      tell("connection", frame.clientId, frame.limits)
      socket.send(JSON.stringify({ type: "capability", id: "1", capabilities: CAPABILITIES, app: { name: "native" } }))
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

if (typeof module !== "undefined") module.exports = { runNative }
