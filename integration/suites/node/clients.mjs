// The clients of npm that the tests let pay: a payment is a line of JSON on stdin, and a
// line on stdout tells what became of it.
import { createInterface } from 'node:readline';
import axios from 'axios';
import axiosRetry from 'axios-retry';
import got from 'got';
import Stripe from 'stripe';

const body = { amount: 100 };

const clients = {
  async stripe({ url, key, timeout, safe }) {
    const { hostname: host, port } = new URL(url);
    const stripe = new Stripe('k', { host, port, protocol: 'http', timeout, telemetry: false });
    if (safe) {
      await stripe.charges.create(body, { idempotencyKey: key });
    } else {
      await stripe.charges.create(body);
    }
  },

  async 'axios, axios-retry'({ url, key, timeout, safe }) {
    const client = axios.create({ timeout });
    if (safe) {
      axiosRetry(client, { retries: 4, shouldResetTimeout: true, retryDelay: axiosRetry.exponentialDelay, retryCondition });
      await client.post(url, body, { headers: { 'Idempotency-Key': key } });
    } else {
      axiosRetry(client);
      await client.post(url, body);
    }
  },

  async got({ url, key, timeout, safe }) {
    const options = { json: body, timeout: { request: timeout } };
    if (safe) {
      const retry = { limit: 4, methods: ['POST'], statusCodes: [409, 429, 500, 502, 503, 504], calculateDelay };
      await got.post(url, { ...options, retry, headers: { 'Idempotency-Key': key } });
    } else {
      await got.post(url, options);
    }
  },
};

const retryCondition = ({ response }) => {
  const told = response?.headers['x-should-retry'];
  return told ? told === 'true' : !response || response.status === 429 || response.status >= 500;
};

const calculateDelay = ({ error, computedValue }) =>
  error.response?.headers['x-should-retry'] === 'false' ? 0 : computedValue;

for await (const line of createInterface({ input: process.stdin })) {
  const payment = JSON.parse(line);
  clients[payment.client](payment)
    .then(() => true, () => false)
    .then((paid) => console.log(JSON.stringify({ id: payment.id, paid })));
}
