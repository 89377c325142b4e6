// Run an application in Node: `node run.js DIALECT URL TOKEN [OPTIONS]`. It tells in lines of JSON, and each line on its
// input is a call of the test's: `[method, …arguments]` on the library's own object.

const application = require("./application.js")
const readline = require("node:readline")

const tell = (...words) => process.stdout.write(`${JSON.stringify(words)}\n`)
const [, , dialect, url, token, options = "{}"] = process.argv

const runActionCable = () => {
  const ActionCable = require("@rails/actioncable/app/assets/javascripts/actioncable.js")
  const { prepareNode, runActionCable } = require("./actioncable.js")
  prepareNode(ActionCable)
  return runActionCable(ActionCable, application, url, token, tell)
}

const RUN = {
  document: () => require("./document.js").runDocument(require("ws"), application, url, token, tell),
  published_sdk: () => require("./published_sdk.js").runPublishedSdk(require("ws"), application, url, token, tell),
  actioncable: runActionCable,
  native: () => require("./native.js").runNative(require("ws"), application, url, token, tell),
  socketio: () => require("./socketio.js").runSocketIo(require("socket.io-client").io, application, url, token, tell, JSON.parse(options)),
}

const running = RUN[dialect]()
readline.createInterface({ input: process.stdin }).on("line", async (line) => {
  const [method, ...words] = JSON.parse(line)
  tell("returned", (await running[method](...words)) === undefined ? null : "something")
})
