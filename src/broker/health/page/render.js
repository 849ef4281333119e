// Rendering of snapshots and events.

const EVENTS_MAX = 100;

/** The last snapshot, and what rates are taken from. */
const shown = { snapshot: null, before: null };

const charts = {
  traffic: new Chart(element('chart-traffic'), 'Throughput', ['published', 'delivered', 'requests'], perSecond),
  latency: new Chart(element('chart-latency'), 'Latency',
    ['in the broker, median', 'in the broker, 99 %', 'round trip, median', 'round trip, 99 %'], seconds, 'decades'),
  data: new Chart(element('chart-data'), 'Payload', ['received'], bytesPerSecond, 'binary'),
  process: new Chart(element('chart-process'), 'Broker CPU', ['of one core'], percent),
};

/** Latencies, if the broker tells them: `in_broker`, `round_trip`, `first_chunk`, each with a count and p50 to p99. */
function latencyOf(snapshot) {
  return snapshot.status?.latency ?? snapshot.latency ?? null;
}

const countersOf = (snapshot) => Object.fromEntries(snapshot.status?.counters ?? []);

/** Rates per second since the previous snapshot; none if that was of another broker. */
function ratesOf(snapshot, before) {
  const status = snapshot.status;
  const ms = snapshot.counted_at_ms - before?.counted_at_ms;
  if (!status || !before?.status || status.pid !== before.status.pid || !(ms > 0)) return {};
  const [now, then] = [countersOf(snapshot), countersOf(before)];
  const rates = {};
  for (const [name, value] of Object.entries(now)) {
    const more = value - (then[name] ?? 0);
    if (more >= 0) rates[name] = more * 1000 / ms;
  }
  const passed = snapshot.health.uptime_ms - before.health.uptime_ms;
  const used = snapshot.process?.cpu_seconds - before.process?.cpu_seconds;
  if (passed > 0 && used >= 0) rates.cpu = used * 100000 / passed;
  return rates;
}

/** Shows a snapshot. */
function render(snapshot, now = performance.now()) {
  const before = shown.snapshot;
  if (before?.status && snapshot.status && before.status.pid !== snapshot.status.pid) forgetRestarts();
  shown.snapshot = snapshot;
  const rates = ratesOf(snapshot, before);
  showHead(snapshot);
  showTiles(snapshot, rates);
  charts.traffic.push([rates.published, rates.delivered, rates.requests]);
  charts.data.push([rates.bytes]);
  charts.process.push([rates.cpu]);
  const latency = latencyOf(snapshot);
  element('chart-latency').hidden = !latency;
  mark(element('charts'), 'data-four', latency ? '' : null);
  const of = (kind, point) => latency?.[kind]?.count ? latency[kind][point] : null;
  charts.latency.push(['in_broker', 'round_trip'].flatMap((kind) => [of(kind, 'p50'), of(kind, 'p99')]));
  const status = snapshot.status;
  if (!status) return;
  showServices(status.services);
  showTree(status.actors, now);
  showHoldings(status.holdings);
  showConnections(status.connections, element('filter').value);
}

const CONDITIONS = { healthy: 'good', degraded: 'warn', unhealthy: 'bad' };

function showHead(snapshot) {
  const { health, status } = snapshot;
  say(element('state'), health.status);
  mark(element('state'), 'data-tone', CONDITIONS[health.status] ?? 'quiet');
  const reasons = [...health.reasons, ...troubles(health)];
  const list = element('reasons');
  keep(list, [...new Set(reasons)], (reason) => reason, () => make('li'), say);
  list.hidden = reasons.length === 0;
  mark(list, 'data-tone', CONDITIONS[health.status]);
  say(element('version'), health.version);
  say(element('uptime'), duration(health.uptime_ms));
  say(element('pid'), status?.pid ?? '–');
  say(element('socket'), status?.socket ?? '–');
  say(element('config'), status?.config_file ?? 'built-in defaults');
  const ago = snapshot.heartbeat_age_ms;
  const age = ago === null ? 'unknown' : `${duration(ago)} old`;
  say(element('link'), snapshot.router_responds ? '' : `the metrics are ${age}`);
  document.title = `${health.status} · lapce-ipc`;
}

/** Why a ready broker is degraded. */
function troubles(health) {
  const parts = health.components ?? {};
  const found = [];
  for (const [service, state] of Object.entries(parts.breakers?.not_closed ?? {})) {
    found.push(`the breaker of ${service} is ${words(state)}`);
  }
  for (const [actor, reason] of Object.entries(parts.actors?.not_running ?? {})) {
    found.push(`${actor} is not running: ${reason}`);
  }
  const { now, limit, status } = parts.connections ?? {};
  if (status && status !== 'healthy') found.push(`${count(now)} of ${count(limit)} connections are in use`);
  return found;
}

function showTiles(snapshot, rates) {
  const { status, process, health } = snapshot;
  const counters = countersOf(snapshot);
  const failed = Object.entries(counters).filter(([name]) => name.startsWith('failed_'));
  const failures = failed.reduce((sum, [, value]) => sum + value, 0);
  const failing = failed.reduce((sum, [name]) => sum + (rates[name] ?? 0), 0);
  const connections = health.components?.connections ?? {};
  const memory = status?.memory_bytes ?? process?.memory_bytes;
  const restarts = (status?.actors ?? []).reduce((sum, actor) => sum + actor.restarts, 0);
  const late = snapshot.threads_late;
  const tiles = [
    { name: 'Connections', value: count(connections.now), note: `of ${count(connections.limit)}`,
      meter: [connections.now, connections.limit, 0.9] },
    { name: 'Published', value: perSecond(rates.published), note: `${count(counters.published)} in all` },
    { name: 'Delivered', value: perSecond(rates.delivered), note: `${count(counters.delivered)} in all` },
    { name: 'Requests', value: perSecond(rates.requests), note: `${count(counters.requests)} in all` },
    { name: 'Requests without a reply', value: perSecond(failing), note: `${count(failures)} in all`,
      tone: failing > 0 ? 'warn' : null },
    { name: 'Dropped', value: count(counters.dropped), note: plural(counters.evicted ?? 0, 'eviction', 'evictions'),
      tone: (rates.dropped ?? 0) + (rates.evicted ?? 0) > 0 ? 'warn' : null },
    { name: 'Slots leased', value: count(status?.slots_used), note: `of ${count(status?.slots_total)}`,
      // A full budget is normal.
      meter: [status?.slots_used, status?.slots_total, 1] },
    { name: 'Memory', value: bytes(memory), note: process ? `${count(process.threads)} threads` : '' },
    { name: 'Restarts', value: count(restarts),
      note: late ? plural(late, 'thread stuck', 'threads stuck') : 'no stuck threads', tone: late ? 'bad' : null },
  ];
  keep(element('tiles'), tiles, (tile) => tile.name, buildTile, showTile);
}

function buildTile({ name, meter }) {
  const tile = make('div', 'tile');
  tile.append(make('dt', '', name), make('dd', 'value'));
  if (meter) tile.append(make('meter'));
  tile.append(make('dd', 'note'));
  if (meter) mark(tile.querySelector('meter'), 'aria-label', name);
  return tile;
}

function showTile(tile, { value, note, tone, meter }) {
  say(tile.querySelector('.value'), value);
  say(tile.querySelector('.note'), note);
  mark(tile, 'data-tone', tone ?? null);
  if (!meter) return;
  const bar = tile.querySelector('meter');
  const [now, limit, high] = meter.map((number) => isNumber(number) ? number : 0);
  Object.assign(bar, { min: 0, max: Math.max(limit, 1), high: limit * high, optimum: 0, value: now });
}

/** The severity of an event. */
function toneOf(topic, data) {
  if (topic.startsWith('$sys.breaker.')) return BREAKERS[data?.to];
  if (topic === '$sys.actor.gave_up') return 'bad';
  if (topic.startsWith('$sys.actor.') || topic.startsWith('$sys.subscription.') || topic === 'lost') return 'warn';
  if (data?.reason && data.reason !== 'client disconnected') return 'warn';
  return null;
}

/** Members shown first. */
const FIRST = ['name', 'actor', 'service', 'from', 'to', 'reason', 'pattern'];

/** The members of an event in a line. */
function detailOf(data) {
  if (data === null || typeof data !== 'object') return String(data ?? '');
  const place = ([key]) => (FIRST.indexOf(key) + FIRST.length + 1) % (FIRST.length + 1);
  const members = Object.entries(data).sort((one, other) => place(one) - place(other));
  const text = (value) => typeof value === 'object' ? JSON.stringify(value) : String(value);
  return members.map(([key, value]) => `${words(key)} ${text(value)}`).join(' · ');
}

/** Puts an event at the top of the list. */
function renderEvent(topic, data, at = new Date()) {
  const list = element('events');
  const entry = make('li');
  const when = make('time', '', clock(at));
  when.dateTime = at.toISOString();
  entry.append(when, make('span', 'topic', topic.replace(/^\$sys\./, '')), make('span', 'detail', detailOf(data)));
  mark(entry, 'data-tone', toneOf(topic, data));
  list.prepend(entry);
  while (list.children.length > EVENTS_MAX) list.lastElementChild.remove();
  element('events-empty').hidden = true;
}

element('filter').addEventListener('input', () => {
  if (shown.snapshot?.status) showConnections(shown.snapshot.status.connections, element('filter').value);
});
