// A real OpenID provider for tests: oidc-provider with its own pages, over HTTPS on loopback.
//
// Its one argument is a JSON file: { cert, key, redirects, secret, accounts, conform }. It prints `listening PORT`, reads
// commands from standard input (`rotate`: new signing keys, without the old ones), and ends with it.
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import https from 'node:https';
import path from 'node:path';
import readline from 'node:readline';
import { pathToFileURL } from 'node:url';

const modules = process.env.HANSE_OIDC_PROVIDER;
const entry = path.join(modules, 'node_modules/oidc-provider/lib/index.js');
const { default: Provider } = await import(pathToFileURL(entry).href);
const config = JSON.parse(readFileSync(process.argv[2], 'utf8'));

const jwks = () => ({
  keys: [generateKeyPairSync('rsa', { modulusLength: 2048 }), generateKeyPairSync('ec', { namedCurve: 'P-256' })].map(
    ({ privateKey }) => ({ ...privateKey.export({ format: 'jwk' }), use: 'sig', kid: randomUUID() }),
  ),
});

const make = (issuer) =>
  new Provider(issuer, {
    jwks: jwks(),
    cookies: { keys: [randomUUID()] },
    clients: [
      { client_id: 'hanse', client_secret: config.secret, redirect_uris: config.redirects },
      {
        client_id: 'kubectl',
        application_type: 'native',
        token_endpoint_auth_method: 'none',
        redirect_uris: ['http://127.0.0.1/done'],
        id_token_signed_response_alg: 'ES256',
      },
    ],
    claims: {
      openid: ['sub'],
      profile: ['preferred_username', 'name'],
      email: ['email', 'email_verified'],
      groups: ['groups'],
    },
    conformIdTokenClaims: config.conform,
    findAccount: (_ctx, id) =>
      config.accounts[id] && { accountId: id, claims: () => ({ sub: id, ...config.accounts[id] }) },
  });

let provider;
const tls = { cert: config.cert, key: config.key };
const server = https.createServer(tls, (request, response) => provider.callback()(request, response));
server.listen(0, '127.0.0.1', () => {
  const { port } = server.address();
  const issuer = `https://127.0.0.1:${port}`;
  provider = make(issuer);
  console.log(`listening ${port}`);
  readline
    .createInterface({ input: process.stdin })
    .on('line', (line) => {
      if (line === 'rotate') {
        provider = make(issuer);
        console.log('rotated');
      }
    })
    .on('close', () => process.exit(0));
});
