// Load: keep-alive HTTP connections that post commands to clients in turn and check every single answer.
//
//   load PORT IDS_FILE CONNECTIONS SECONDS EVERY_MS      the agent's token is in $TOKEN
//
// Each connection has one command in flight. With EVERY_MS 0 the next follows the answer; otherwise one is due every
// EVERY_MS, and what an answer took is counted from when its command was due, so that a pause is seen in full. Every
// command carries a number of its own, and a right answer is a 200 that carries it back; only right ones count. Ends after SECONDS, or when
// standard input does, and prints one line of JSON.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER_BYTES = 16384, EVENTS_AT_ONCE = 256, ID_BYTES = 72, SHOWN_BYTES = 200 };
static const uint32_t STDIN = UINT32_MAX, TIMER = UINT32_MAX - 1;
static const uint64_t LAST_ANSWERS_NS = 5000000000ull;

struct connection {
  int fd, filled, busy;
  unsigned number;
  uint64_t due_ns;
  char buffer[BUFFER_BYTES];
};

static struct connection *connections;
static char (*ids)[ID_BYTES], shown[SHOWN_BYTES], authorization[4096];
static int port, total, client_count, in_flight, epoll_fd, every_ms;
static unsigned numbers;
static long answered, refused, wrong;
static size_t room;
static uint32_t *latencies_us;
static uint64_t began_ns, until_ns, next_due_ns;

static void fail(const char *what) {
  fprintf(stderr, "load: %s\n", what);
  exit(1);
}

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void watch(int fd, uint32_t index) {
  struct epoll_event event = {EPOLLIN, {.u32 = index}};
  if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event)) fail("cannot watch a connection");
}

// --- asking ---

static void open_connection(uint32_t index) {
  struct connection *c = &connections[index];
  struct sockaddr_in server = {
      .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int one = 1;
  c->fd = socket(AF_INET, SOCK_STREAM, 0);
  if (c->fd < 0 || connect(c->fd, (void *)&server, sizeof server)) fail("nobody listens on the port");
  setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  fcntl(c->fd, F_SETFL, O_NONBLOCK);
  watch(c->fd, index);
}

static void ask(struct connection *c, uint64_t due_ns) {
  char body[512], request[8192];
  c->number = ++numbers;
  c->due_ns = due_ns;
  c->busy = 1;
  in_flight++;
  int size = snprintf(body, sizeof body,
                      "{\"clientId\":\"%s\",\"command\":{\"target\":\"headline\",\"action\":\"setText\",\"parameters\":"
                      "{\"text\":\"What an agent would like its user to read in this place\",\"n\":%u}}}",
                      ids[c->number % client_count], c->number);
  int length = snprintf(request, sizeof request,
                        "POST /api/command HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
                        "%sContent-Length: %d\r\n\r\n%s",
                        port, authorization, size, body);
  if (send(c->fd, request, length, MSG_NOSIGNAL) != length) fail("a connection did not take a request");
}

static void ask_if_due(struct connection *c) {
  uint64_t now = now_ns();
  if (c->busy || now >= until_ns) return;
  if (!every_ms) {
    ask(c, now);
  } else if (next_due_ns <= now) {
    ask(c, next_due_ns);
    next_due_ns += every_ms * 1000000ull;
  }
}

// --- checking ---

static int header_number(const char *headers, const char *end, const char *name) {
  const char *line = headers;
  while ((line = memmem(line, end - line, "\r\n", 2))) {
    line += 2;
    if (!strncasecmp(line, name, strlen(name))) return atoi(line + strlen(name));
  }
  return -1;
}

static int carries(const char *body, int length, unsigned number) {
  char wanted[32];
  int size = snprintf(wanted, sizeof wanted, "\"n\":%u", number);
  const char *at = memmem(body, length, wanted, size);
  return at && at + size < body + length && (at[size] < '0' || at[size] > '9');
}

static void remember(uint64_t latency_ns) {
  if ((size_t)answered == room) {
    room = room ? 2 * room : 65536;
    latencies_us = realloc(latencies_us, room * sizeof *latencies_us);
    if (!latencies_us) fail("out of memory");
  }
  latencies_us[answered++] = latency_ns / 1000;
}

static void check(struct connection *c, int status, const char *body, int length) {
  uint64_t now = now_ns();
  int is_right = status == 200 && carries(body, length, c->number);
  if (!is_right && !shown[0]) snprintf(shown, sizeof shown, "%d %.*s", status, length, body);
  if (!is_right) status == 200 ? wrong++ : refused++;
  else if (now < until_ns) remember(now - c->due_ns);
  c->busy = 0;
  in_flight--;
}

// Return whether a whole answer stood in the buffer; it has been checked then.
static int take_answer(struct connection *c) {
  char *end = memmem(c->buffer, c->filled, "\r\n\r\n", 4);
  if (!end) return 0;
  int length = header_number(c->buffer, end, "Content-Length:"), size = end + 4 - c->buffer + length;
  if (length < 0 || size > BUFFER_BYTES) fail("an answer without a length, or one that is too long");
  if (c->filled < size) return 0;
  check(c, atoi(c->buffer + 9), end + 4, length);
  c->filled -= size;
  memmove(c->buffer, c->buffer + size, c->filled);
  return 1;
}

static void on_readable(struct connection *c) {
  int got = read(c->fd, c->buffer + c->filled, BUFFER_BYTES - c->filled);
  if (got < 0 && errno == EAGAIN) return;
  if (got <= 0) fail("the server closed a connection");
  c->filled += got;
  if (take_answer(c)) ask_if_due(c);
}

// --- the run ---

static void on_timer(int fd) {
  uint64_t expirations;
  if (read(fd, &expirations, sizeof expirations) < 0) return;
  for (int i = 0; i < total; i++) ask_if_due(&connections[i]);
}

static int start_timer(void) {
  struct itimerspec period = {{every_ms / 1000, every_ms % 1000 * 1000000}, {every_ms / 1000, every_ms % 1000 * 1000000}};
  int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  if (fd < 0 || timerfd_settime(fd, 0, &period, NULL)) fail("no timer");
  watch(fd, TIMER);
  return fd;
}

static void stop_early(void) {
  char line[64];
  if (read(0, line, sizeof line) > 0) return;
  epoll_ctl(epoll_fd, EPOLL_CTL_DEL, 0, NULL);
  until_ns = now_ns();
}

static void run(int timer) {
  struct epoll_event events[EVENTS_AT_ONCE];
  while (now_ns() < until_ns || (in_flight && now_ns() < until_ns + LAST_ANSWERS_NS)) {
    int count = epoll_wait(epoll_fd, events, EVENTS_AT_ONCE, 20);
    for (int i = 0; i < count; i++) {
      uint32_t index = events[i].data.u32;
      if (index == STDIN) stop_early();
      else if (index == TIMER) on_timer(timer);
      else on_readable(&connections[index]);
    }
  }
}

static int ascending(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return (x > y) - (x < y);
}

static void report(void) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  double cpu = usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
  qsort(latencies_us, answered, sizeof *latencies_us, ascending);
  for (char *at = shown; *at; at++)
    if (*at < ' ' || *at == '"' || *at == '\\') *at = '\'';
  printf("{\"answers\":%ld,\"seconds\":%.6f,\"p50_us\":%u,\"p95_us\":%u,\"p99_us\":%u,\"max_us\":%u,\"wrong\":%ld,\"refused\":%ld,"
         "\"unanswered\":%d,\"cpu_seconds\":%.4f,\"shown\":\"%s\"}\n",
         answered, (until_ns - began_ns) / 1e9, answered ? latencies_us[answered / 2] : 0,
         answered ? latencies_us[answered * 95 / 100] : 0, answered ? latencies_us[answered * 99 / 100] : 0, answered ? latencies_us[answered - 1] : 0, wrong, refused,
         in_flight, cpu, shown);
}

static void read_ids(const char *file_name) {
  FILE *file = fopen(file_name, "r");
  char line[ID_BYTES];
  if (!file) fail("the file with the ids cannot be read");
  while (fscanf(file, "%71s", line) == 1) {
    ids = realloc(ids, (client_count + 1) * sizeof *ids);
    strcpy(ids[client_count++], line);
  }
  fclose(file);
  if (!client_count) fail("there are no clients");
}

int main(int count, char **arguments) {
  const char *token = getenv("TOKEN");
  int timer = -1;
  if (count != 6) fail("usage: load PORT IDS_FILE CONNECTIONS SECONDS EVERY_MS");
  port = atoi(arguments[1]);
  read_ids(arguments[2]);
  total = atoi(arguments[3]);
  every_ms = atoi(arguments[5]);
  if (token) snprintf(authorization, sizeof authorization, "Authorization: Bearer %s\r\n", token);
  connections = calloc(total, sizeof *connections);
  epoll_fd = epoll_create1(0);
  if (total < 1 || !connections || epoll_fd < 0) fail("cannot begin");
  watch(0, STDIN);
  for (int i = 0; i < total; i++) open_connection(i);
  if (every_ms) timer = start_timer();
  began_ns = next_due_ns = now_ns();
  until_ns = began_ns + (uint64_t)(atof(arguments[4]) * 1e9);
  for (int i = 0; i < total; i++) ask_if_due(&connections[i]);
  run(timer);
  report();
}
