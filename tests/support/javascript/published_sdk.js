// The application in the wire form of the original project's SDK: what its library sends, in the order in which it does.

const runPublishedSdk = (WebSocket, { Application, CAPABILITIES }, url, token, tell) => {
  let socket
  const send = (frame) => socket.send(JSON.stringify({ id: crypto.randomUUID(), timestamp: new Date().toISOString(), sessionId: "s", ...frame }))
  const respond = ({ requestId, status, result, error }) => {
    const [type, correlationId] = running.get(requestId) ?? ["function_result", requestId]
    running.delete(requestId)
    send({ type, correlationId, success: status === "success", data: result, error })
  }
  const application = new Application((type, body) => (type === "response" ? respond(body) : send({ type, ...body })), tell)
  const running = new Map()
  const take = {
    connection: ({ clientId, limits }) => tell("connection", clientId, limits),
    connection_ack: () => tell("registered", { status: "success" }),
    call_function: ({ id, name, parameters }) => application.take("command", { requestId: id, target: name, parameters }),
    call_component_action: ({ id, action, parameters }) => {
      if (action !== "open") return send({ type: "error", code: "ACTION_NOT_SUPPORTED", message: `no ${action} at ${id}` })
      running.set("one", ["component_action_result", id])
      application.take("command", { requestId: "one", target: id, action, parameters })
    },
    update_component: ({ id, properties }) => {
      tell("updated", id, properties)
      send({ type: "component_update_result", correlationId: id, success: true })
    },
  }
  const shapeless = { _def: { typeName: "ZodObject" }, "~standard": { vendor: "zod" } }
  const named = (item) => (typeof item === "string" ? { name: item, description: item, parameters: shapeless, tags: ["t"] } : item)
  const connect = () => {
    socket = new WebSocket(url, ["agentbridge.v1", `bearer.${token}`])
    socket.onopen = () => {
      const functions = CAPABILITIES.filter(({ type }) => type !== "component").map(named)
      const actions = { open: { description: "Open it", parameters: shapeless }, shut: { description: "Never works" } }
      const panel = { id: "panel", description: "A panel", componentType: "panel", properties: shapeless, actions, path: "/main" }
      send({ type: "register_capabilities", functions, components: [panel] })
    }
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
  return { disconnect: () => socket.close(1000), register: (name) => send({ type: "update_capabilities", functions: [named(name)] }) }
}

if (typeof module !== "undefined") module.exports = { runPublishedSdk }
