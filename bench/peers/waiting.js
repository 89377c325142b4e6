'use strict';
// Commands that wait for their response, by request id, each with its timeout.

const { randomUUID } = require('node:crypto');

const TIMEOUT_MS = 30_000;
const waiting = new Map();

function expect() {
  const requestId = randomUUID();
  const answer = new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      waiting.delete(requestId);
      reject(new Error('Request timed out'));
    }, TIMEOUT_MS);
    waiting.set(requestId, { resolve, reject, timer });
  });
  return { requestId, answer };
}

function settle(response) {
  const entry = waiting.get(response.requestId);
  if (entry === undefined) return;
  waiting.delete(response.requestId);
  clearTimeout(entry.timer);
  if (response.status === 'success') entry.resolve(response.result);
  else entry.reject(new Error(response.error?.message ?? 'Command failed'));
}

module.exports = { expect, settle };
