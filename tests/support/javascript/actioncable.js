// The application by @rails/actioncable, as Rails' channels are spoken to.

const runActionCable = (ActionCable, { Application, CAPABILITIES }, url, token, tell) => {
  const consumer = ActionCable.createConsumer(url)
  if (token) consumer.addSubProtocol(`bearer.${token}`)
  const send = (type, body) => subscription.send({ type, ...body })
  const application = new Application(send, tell)
  const subscription = consumer.subscriptions.create("AgentBridgeChannel", {
    connected: () => tell("connect"),
    disconnected: () => tell("disconnect"),
    rejected: () => tell("rejected"),
    received: ({ type, ...frame }) => {
      if (type === "ack") return tell("registered", { status: "success" })
      if (type !== "connection") return application.take(type, frame)
      tell("connection", frame.clientId, frame.limits)
      send("capability", { id: "1", capabilities: CAPABILITIES, app: { name: "actioncable" } })
    },
  })
  return {
    disconnect: () => consumer.disconnect(),
    unsubscribe: () => subscription.unsubscribe(),
    subscribeTo: (identifier) =>
      consumer.subscriptions.create(identifier, {
        connected: () => tell("second", "connected"),
        rejected: () => tell("second", "rejected"),
      }) && undefined,
  }
}

// In Node the library lacks a WebSocket, and the page whose visibility it watches.
const prepareNode = (ActionCable) => {
  ActionCable.adapters.WebSocket = require("ws")
  ActionCable.ConnectionMonitor.staleThreshold = 4
  Object.assign(globalThis, { addEventListener() {}, removeEventListener() {}, document: { visibilityState: "visible" } })
}

if (typeof module !== "undefined") module.exports = { runActionCable, prepareNode }
