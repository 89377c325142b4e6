// The one application of the tests, whatever carries its frames: `send(type, body)` writes one, `tell(…)` tells the test.

const CAPABILITIES = [
  {
    name: "add",
    parameters: {
      type: "object",
      properties: { a: { type: "integer" }, b: { type: "integer" } },
      required: ["a", "b"],
    },
  },
  "fail",
  "count",
  "announce",
  "never",
  "shout",
  { name: "rare", rateLimit: { limit: 1, perSeconds: 60 } },
  { type: "component", id: "panel", componentType: "panel", properties: { open: false }, actions: ["open"] },
]

class Application {
  constructor(send, tell) {
    this.send = send
    this.tell = tell
    this.answer = (requestId, result) => send("response", { requestId, status: "success", result })
    this.fail = (requestId, error) => send("response", { requestId, status: "error", error })
  }

  take(type, frame) {
    if (type === "command") this.execute(frame)
    else this.tell(type, frame)
  }

  execute({ requestId, target, action, parameters }) {
    switch (target) {
      case "add":
        return this.answer(requestId, parameters.a + parameters.b)
      case "fail":
        return this.fail(requestId, { code: "E_NO", message: "not today" })
      case "count":
        this.send("progress", { requestId, progress: 1, total: 2 })
        return this.answer(requestId, "counted")
      case "rare":
        return this.answer(requestId, null)
      case "announce":
        this.send("event", { event: "announced", source: "page", data: parameters })
        return this.answer(requestId, null)
      case "panel":
        return this.answer(requestId, { action, parameters })
      case "shout":
        return this.answer(requestId, "x".repeat(parameters.characters))
      case "never":
        return this.tell("begun", requestId)
    }
  }
}

if (typeof module !== "undefined") module.exports = { Application, CAPABILITIES }
