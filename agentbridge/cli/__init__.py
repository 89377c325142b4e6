"""Parts that several commands share: credentials, output, signals, requests and subscriptions."""
