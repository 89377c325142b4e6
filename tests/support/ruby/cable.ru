# A server of Rails' own ActionCable with the guide's channel, for tests to compare with.
require "action_cable"
require "logger"
require "securerandom"

class OracleConnection < ActionCable::Connection::Base
  identified_by :token

  def connect
    self.token = request.params["token"] or reject_unauthorized_connection
  end
end

class AgentBridgeChannel < ActionCable::Channel::Base
  def subscribed
    transmit({type: "connection", clientId: SecureRandom.uuid})
  end

  def receive(data)
    data["event"] == "restart" ? ActionCable.server.restart : transmit({type: "ack", id: data["id"]})
  end
end

class RejectingChannel < ActionCable::Channel::Base
  def subscribed = reject
end

ActionCable.server.config.tap do |config|
  config.cable = {"adapter" => "async"}
  config.connection_class = -> { OracleConnection }
  config.disable_request_forgery_protection = true
  config.logger = Logger.new($stderr, level: Logger::WARN)
end

run ActionCable.server
