// Simulated applications: many WebSocket clients in one epoll loop, cheap enough not to distort what is measured.
//
//   clients PORT PATH COUNT AT_ONCE ACKS IDS_FILE [BACK_PORT]      the clients' token is in $TOKEN
//
// Connects COUNT clients, at most AT_ONCE of them unfinished at a time; each registers one component and, where ACKS
// is 1, waits for the acknowledgement. Then writes their ids to IDS_FILE, prints one line of JSON, and answers every
// command at once, with the command's number `n` in the result. A line on standard input
//
//   publish CLIENTS SECONDS IDS
//
// has the first CLIENTS of them publish events, each the next one when the last is through: with IDS 1 that is when
// its `ack` has come, with 0 when a `ping` sent behind it is answered. One line of JSON tells what came of it. The end
// of standard input ends the program.
//
// With BACK_PORT the clients resume their sessions: when the server closes their connections, all connect again at once,
// there. One line of JSON tells when the last of them has registered again.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER_BYTES = 8192, FRAME_BYTES = 2048, CLIENTS_AN_ADDRESS = 20000, EVENTS_AT_ONCE = 256 };
enum { TEXT = 1, CLOSE = 8, PING = 9, PONG = 10, FINAL = 0x80, MASKED = 0x80 };
enum phase { UPGRADING, GREETING, REGISTERING, READY };
static const double PATIENCE_SECONDS = 10;

struct client {
  int fd, filled;
  enum phase phase;
  uint64_t published_ns;
  char id[72], resume[96];
  char *buffer;
};

static struct client *clients;
static int port, back_port, total, at_once, acks, opened, greeted, ready, lost, back, resumed, renamed, epoll_fd;
static const char *path, *ids_file, *token;
static uint64_t started_ns, greeted_ns, lost_ns;

static struct {
  int unfinished, with_ids;
  long count, refused;
  size_t room;
  uint64_t began_ns, until_ns;
  uint32_t *latencies_us;
} publishing;

static const char CAPABILITIES[] =
    "{\"type\":\"capability\",%s\"app\":{\"name\":\"bench\",\"version\":\"1\"},\"capabilities\":[{\"type\":\"component\","
    "\"id\":\"headline\",\"componentType\":\"label\",\"actions\":{\"setText\":{\"description\":\"Show a text\","
    "\"parameters\":{\"type\":\"object\",\"properties\":{\"text\":{\"type\":\"string\",\"maxLength\":500},"
    "\"n\":{\"type\":\"integer\",\"minimum\":0}},\"required\":[\"text\",\"n\"],\"additionalProperties\":false}}}}]}";
static const char RESPONSE[] =
    "{\"type\":\"response\",\"requestId\":\"%s\",\"status\":\"success\",\"result\":{\"shown\":true,\"n\":%s,"
    "\"before\":\"What stood there until the agent came along and asked for something else\"}}";
static const char EVENT[] = "{\"type\":\"event\",\"event\":\"tick\",\"source\":\"headline\",\"data\":{\"sentNs\":%llu,"
                            "\"text\":\"Something has happened that somebody may like to hear of\"}%s}";

static void fail(const char *what) {
  fprintf(stderr, "clients: %s\n", what);
  exit(1);
}

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static double seconds_between(uint64_t from_ns, uint64_t to_ns) { return (to_ns - from_ns) / 1e9; }

// --- sending ---

static void send_all(int fd, const char *bytes, int count) {
  while (count > 0) {
    int sent = send(fd, bytes, count, MSG_NOSIGNAL);
    if (sent < 0 && errno == EAGAIN) {
      poll(&(struct pollfd){fd, POLLOUT, 0}, 1, 1000);
      continue;
    }
    if (sent < 0) fail("a connection broke while it was written to");
    bytes += sent;
    count -= sent;
  }
}

// Write a frame at `out` and return its length. The mask is all zeros: it costs nothing and is as valid as any.
static int frame(char *out, int opcode, const char *payload, int length) {
  int at = 0;
  if (length > FRAME_BYTES - 8) fail("a frame is too long to be sent");
  out[at++] = FINAL | opcode;
  if (length < 126) {
    out[at++] = MASKED | length;
  } else {
    out[at++] = MASKED | 126;
    out[at++] = length >> 8;
    out[at++] = length & 255;
  }
  memset(out + at, 0, 4);
  memcpy(out + at + 4, payload, length);
  return at + 4 + length;
}

static void send_frame(struct client *c, int opcode, const char *payload, int length) {
  char out[FRAME_BYTES];
  send_all(c->fd, out, frame(out, opcode, payload, length));
}

// --- reading JSON: enough for frames whose senders are known ---

static const char *value_of(const char *json, int length, const char *quoted_name) {
  const char *at = memmem(json, length, quoted_name, strlen(quoted_name));
  if (!at) return NULL;
  for (at += strlen(quoted_name); at < json + length && (*at == ':' || *at == ' '); at++) {}
  return at < json + length ? at : NULL;
}

// Copy a string's or a number's characters; return whether there are any that fit.
static int copy_value(const char *json, int length, const char *quoted_name, char *out, int size) {
  const char *end = json + length, *at = value_of(json, length, quoted_name);
  if (!at) return 0;
  int quoted = *at == '"', n = 0;
  for (at += quoted; at < end && n < size - 1; at++) {
    if (quoted ? *at == '"' : (*at < '0' || *at > '9')) break;
    out[n++] = *at;
  }
  out[n] = 0;
  return n > 0;
}

// --- events ---

static void publish_one(struct client *c) {
  char event[512], id[48] = "", out[2 * FRAME_BYTES];
  c->published_ns = now_ns();
  if (publishing.with_ids) snprintf(id, sizeof id, ",\"id\":\"%llu\"", (unsigned long long)c->published_ns);
  int length = snprintf(event, sizeof event, EVENT, (unsigned long long)c->published_ns, id);
  int bytes = frame(out, TEXT, event, length);
  if (!publishing.with_ids) bytes += frame(out + bytes, TEXT, "{\"type\":\"ping\"}", 15);
  send_all(c->fd, out, bytes);
}

static int ascending(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return (x > y) - (x < y);
}

static void report_published(uint64_t ended_ns) {
  long n = publishing.count;
  uint32_t *us = publishing.latencies_us;
  qsort(us, n, sizeof *us, ascending);
  printf("{\"events\":%ld,\"seconds\":%.6f,\"p50_us\":%u,\"p99_us\":%u,\"max_us\":%u,\"refused\":%ld}\n", n,
         seconds_between(publishing.began_ns, ended_ns), n ? us[n / 2] : 0, n ? us[n * 99 / 100] : 0,
         n ? us[n - 1] : 0, publishing.refused);
  fflush(stdout);
}

static void event_is_through(struct client *c, int refused) {
  uint64_t now = now_ns();
  if (!publishing.unfinished) return;
  publishing.refused += refused;
  if ((size_t)publishing.count == publishing.room) {
    publishing.room = publishing.room ? 2 * publishing.room : 65536;
    publishing.latencies_us = realloc(publishing.latencies_us, publishing.room * sizeof *publishing.latencies_us);
    if (!publishing.latencies_us) fail("out of memory");
  }
  publishing.latencies_us[publishing.count++] = (now - c->published_ns) / 1000;
  if (now < publishing.until_ns) publish_one(c);
  else if (!--publishing.unfinished) report_published(now);
}

static void publish(int count, double seconds, int with_ids) {
  publishing.count = publishing.refused = 0;
  publishing.with_ids = with_ids;
  publishing.unfinished = count;
  publishing.began_ns = now_ns();
  publishing.until_ns = publishing.began_ns + (uint64_t)(seconds * 1e9);
  for (int i = 0; i < count; i++) publish_one(&clients[i]);
}

static void take_order(void) {
  char line[128];
  int count, with_ids, length = read(0, line, sizeof line - 1);
  double seconds;
  if (length <= 0) exit(0);
  line[length] = 0;
  if (sscanf(line, "publish %d %lf %d", &count, &seconds, &with_ids) != 3) fail("an order that is none");
  if (count < 1 || count > total || publishing.unfinished) fail("an order that cannot be carried out");
  publish(count, seconds, with_ids);
}

// --- connecting ---

static void watch(int fd, uint32_t index) {
  struct epoll_event event = {EPOLLIN, {.u32 = index}};
  if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event)) fail("cannot watch a connection");
}

// Beyond what one source address has ports for, take the next one of loopback.
static void choose_source(int fd, int index) {
  struct sockaddr_in source = {.sin_family = AF_INET};
  int one = 1;
  if (total <= CLIENTS_AN_ADDRESS) return;
  source.sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + index / CLIENTS_AN_ADDRESS);
  setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
  if (bind(fd, (void *)&source, sizeof source)) fail("cannot bind to a second address of loopback");
}

static void open_connection(int index) {
  int one = 1;
  struct client *c = &clients[index];
  struct sockaddr_in server = {
      .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  char request[4096];
  c->fd = socket(AF_INET, SOCK_STREAM, 0);
  if (!c->buffer) c->buffer = malloc(BUFFER_BYTES);
  if (c->fd < 0 || !c->buffer) fail("no more connections can be opened: raise the limit of open files (ulimit -n)");
  choose_source(c->fd, index);
  if (connect(c->fd, (void *)&server, sizeof server)) fail("nobody listens on the port");
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  fcntl(c->fd, F_SETFL, O_NONBLOCK);
  int length = snprintf(request, sizeof request,
                        "GET %s%s%s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: YmVuY2htYXJrIGNsaWVudA==\r\n%s%s%s\r\n",
                        path, back_port ? "?resume=" : "", c->resume, port, token ? "Authorization: Bearer " : "", token ? token : "", token ? "\r\n" : "");
  if (length >= (int)sizeof request) fail("the token is too long");
  send_all(c->fd, request, length);
  watch(c->fd, index);
}

static void open_next(void) { open_connection(opened++); }

// Connect again, with all the others whose server has gone.
static void come_back(struct client *c) {
  if (!lost) lost_ns = now_ns();
  lost += c->phase == READY;
  close(c->fd);
  c->filled = 0;
  c->phase = UPGRADING;
  port = back_port;
  open_connection(c - clients);
}

static void one_is_back(void) {
  if (++back < total) return;
  printf("{\"back\":%.6f,\"resumed\":%d,\"renamed\":%d}\n", seconds_between(lost_ns, now_ns()), resumed, renamed);
  fflush(stdout);
}

static void all_are_ready(void) {
  uint64_t now = now_ns();
  FILE *file = fopen(ids_file, "w");
  if (!file) fail("the file for the ids cannot be written");
  for (int i = 0; i < total; i++) fprintf(file, "%s\n", clients[i].id);
  fclose(file);
  printf("{\"connected\":%.6f,\"registered\":%.6f}\n", seconds_between(started_ns, greeted_ns),
         seconds_between(started_ns, now));
  fflush(stdout);
}

static void one_is_ready(struct client *c) {
  c->phase = READY;
  if (lost) {
    one_is_back();
    return;
  }
  if (opened < total) open_next();
  if (++ready == total) all_are_ready();
}

static void greet(struct client *c, const char *payload, int length) {
  char capabilities[1024], id[sizeof c->id];
  if (!copy_value(payload, length, "\"clientId\"", id, sizeof id)) fail("the first frame names no clientId");
  if (back_port && !copy_value(payload, length, "\"resumeToken\"", c->resume, sizeof c->resume))
    fail("the first frame has no resumeToken");
  if (++greeted == total) greeted_ns = now_ns();
  if (lost) {
    const char *again = value_of(payload, length, "\"resumed\"");
    resumed += again && *again == 't';
    renamed += strcmp(id, c->id) != 0;
  }
  memcpy(c->id, id, sizeof id);
  int size = snprintf(capabilities, sizeof capabilities, CAPABILITIES, acks ? "\"id\":\"r\"," : "");
  c->phase = REGISTERING;
  send_frame(c, TEXT, capabilities, size);
  if (!acks) one_is_ready(c);
}

// --- receiving ---

static void answer(struct client *c, const char *payload, int length) {
  char request_id[128], number[24], response[512];
  if (!copy_value(payload, length, "\"requestId\"", request_id, sizeof request_id)) fail("a command without requestId");
  if (!copy_value(payload, length, "\"n\"", number, sizeof number)) fail("a command without its number");
  send_frame(c, TEXT, response, snprintf(response, sizeof response, RESPONSE, request_id, number));
}

static void on_text(struct client *c, const char *payload, int length) {
  char type[24];
  if (!copy_value(payload, length, "\"type\"", type, sizeof type)) fail("a frame without a type");
  if (c->phase == GREETING) greet(c, payload, length);
  else if (!strcmp(type, "command")) answer(c, payload, length);
  else if (!strcmp(type, "ack") && c->phase == REGISTERING) one_is_ready(c);
  else if (!strcmp(type, "ack") || !strcmp(type, "pong")) event_is_through(c, 0);
  else if (!strcmp(type, "error") && c->phase == READY) event_is_through(c, 1);
  else {
    fprintf(stderr, "%.*s\n", length, payload);
    fail("an unexpected frame");
  }
}

static void on_frame(struct client *c, int opcode, const char *payload, int length) {
  if (opcode == TEXT) on_text(c, payload, length);
  else if (opcode == PING) send_frame(c, PONG, payload, length);
  else if (opcode == CLOSE && !back_port) fail("the server closed a connection");
}

static int take_upgrade(struct client *c) {
  char *end = memmem(c->buffer, c->filled, "\r\n\r\n", 4);
  if (!end) return 0;
  if (memcmp(c->buffer, "HTTP/1.1 101", 12)) fail("the server refused a WebSocket");
  c->phase = GREETING;
  return end + 4 - c->buffer;
}

// Take one frame that begins at `at`; return its length, 0 while it is incomplete.
static int take_frame(struct client *c, int at) {
  const unsigned char *bytes = (unsigned char *)c->buffer + at;
  int left = c->filled - at, header = 2, length;
  if (left < 2) return 0;
  length = bytes[1] & 127;
  if (length == 126) {
    if (left < 4) return 0;
    length = bytes[2] << 8 | bytes[3];
    header = 4;
  }
  if (header + length > BUFFER_BYTES) fail("a frame is too long to be read");
  if (left < header + length) return 0;
  on_frame(c, bytes[0] & 15, (char *)bytes + header, length);
  return header + length;
}

static void on_readable(struct client *c) {
  int taken, at = 0, got = read(c->fd, c->buffer + c->filled, BUFFER_BYTES - c->filled);
  if (got < 0 && errno == EAGAIN) return;
  if (got <= 0 && back_port && (c->phase != READY || lost < total)) {  // a busy server gives up on some handshakes
    come_back(c);
    return;
  }
  if (got <= 0) fail("the server closed a connection");
  c->filled += got;
  if (c->phase == UPGRADING) at = take_upgrade(c);
  if (c->phase != UPGRADING)
    while ((taken = take_frame(c, at))) at += taken;
  c->filled -= at;
  memmove(c->buffer, c->buffer + at, c->filled);
}

static void raise_file_limit(void) {
  struct rlimit limit;
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

static void run(void) {
  struct epoll_event events[EVENTS_AT_ONCE];
  for (;;) {
    int count = epoll_wait(epoll_fd, events, EVENTS_AT_ONCE, 1000);
    for (int i = 0; i < count; i++) {
      if (events[i].data.u32 == UINT32_MAX) take_order();
      else on_readable(&clients[events[i].data.u32]);
    }
    if (publishing.unfinished && now_ns() > publishing.until_ns + (uint64_t)(PATIENCE_SECONDS * 1e9))
      fail("an event was not acknowledged in time");
  }
}

int main(int count, char **arguments) {
  if (count != 7 && count != 8) fail("usage: clients PORT PATH COUNT AT_ONCE ACKS IDS_FILE [BACK_PORT]");
  port = atoi(arguments[1]);
  path = arguments[2];
  total = atoi(arguments[3]);
  at_once = atoi(arguments[4]);
  acks = atoi(arguments[5]);
  ids_file = arguments[6];
  back_port = count == 8 ? atoi(arguments[7]) : 0;
  token = getenv("TOKEN");
  raise_file_limit();
  clients = calloc(total, sizeof *clients);
  epoll_fd = epoll_create1(0);
  if (total < 1 || !clients || epoll_fd < 0) fail("cannot begin");
  watch(0, UINT32_MAX);
  started_ns = now_ns();
  while (opened < total && opened - ready < at_once) open_next();
  run();
}
