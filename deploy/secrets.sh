#!/bin/sh
# Print fresh secrets for compose.yaml: deploy/secrets.sh > .env
# With the argument `logins` it prints the keys of agents' logins alone, for their rotation (docs/deployment.md).
# Each begins with a letter, for NATS takes a password like 12345678 or 7M for a number.
set -eu
umask 077

# A key as NATS writes it: in base32, the bytes of its type (hex), the key (hex), and a CRC-16 of both.
nkey() {
  echo "$1$2" | awk '
    function byte(at) { return 16 * (index(digits, substr($0, at, 1)) - 1) + index(digits, substr($0, at + 1, 1)) - 1 }
    function xor(a, b,   bit, sum) {
      for (bit = 1; bit < 65536; bit *= 2) if (int(a / bit) % 2 != int(b / bit) % 2) sum += bit
      return sum + 0
    }
    BEGIN { digits = "0123456789abcdef"; letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567" }
    {
      for (at = 1; at < length($0); at += 2) {
        crc = xor(crc, byte(at) * 256)
        for (bit = 0; bit < 8; bit++) crc = crc >= 32768 ? xor(crc * 2 % 65536, 4129) : crc * 2
      }
      $0 = $0 sprintf("%02x%02x", crc % 256, int(crc / 256))
      for (at = 1; at < length($0); at += 2) {
        rest = rest * 256 + byte(at); bits += 8
        while (bits >= 5) {
          bits -= 5; size = 2 ^ bits
          text = text substr(letters, int(rest / size) + 1, 1); rest %= size
        }
      }
      if (bits) text = text substr(letters, rest * 2 ^ (5 - bits) + 1, 1)
      print text
    }'
}

last_32_bytes() { od -An -v -tx1 | tr -d ' \n' | tail -c 64; }

# The seed goes to the registries, the public half to the NATS servers.
pair() {
  key=$(openssl genpkey -algorithm "$2")
  echo "AGENTBRIDGE_NATS_$1_SEED=$(nkey "$3" "$(echo "$key" | openssl pkey -outform DER | last_32_bytes)")"
  echo "AGENTBRIDGE_NATS_$1=$(nkey "$4" "$(echo "$key" | openssl pkey -pubout -outform DER | last_32_bytes)")"
}

if [ "${1:-}" != logins ]; then
  for name in JWT_SECRET NATS_PASSWORD_GATEWAY NATS_PASSWORD_REGISTRY NATS_PASSWORD_API NATS_PASSWORD_SYSTEM; do
    echo "AGENTBRIDGE_$name=s$(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n')"
  done
fi
pair ACCOUNT ED25519 9000 00
pair XKEY X25519 95c0 b8
