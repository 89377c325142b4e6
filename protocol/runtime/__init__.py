"""The parts that every process runs on: settings, logs, tokens and their expiry, alarms; more in folders."""
