// Tables and the tree. Rows are kept by their keys and updated in place, so that a selection stays.

const ROWS_MAX = 200;

/** Makes the children of `parent` those of `items`, in their order. */
function keep(parent, items, keyOf, build, update) {
  const known = parent.kept ??= new Map();
  const demand = new Set(items.map(keyOf));
  for (const [key, node] of known) {
    if (!demand.has(key)) {
      node.remove();
      known.delete(key);
    }
  }
  items.forEach((item, index) => {
    const key = keyOf(item);
    let node = known.get(key);
    if (!node) known.set(key, node = build(item));
    if (parent.children[index] !== node) parent.insertBefore(node, parent.children[index] ?? null);
    update(node, item);
  });
}

/** Fills a table: `columns` are pairs of a class and what a row has there. */
function fill(table, items, keyOf, columns, toneOf) {
  const labels = Array.from(table.tHead.rows[0].cells, (cell) => cell.textContent);
  const build = () => {
    const row = make('tr');
    labels.forEach((label, index) => {
      const cell = make('td', columns[index][0]);
      cell.dataset.label = label;
      row.append(cell);
    });
    return row;
  };
  keep(table.tBodies[0], items, keyOf, build, (row, item) => {
    mark(row, 'data-tone', toneOf(item));
    columns.forEach(([kind, show], index) => {
      const cell = row.cells[index];
      const shown = show(item);
      if (shown instanceof Object) {
        const badge = cell.firstElementChild ?? cell.appendChild(make('span', 'badge'));
        say(badge, shown.text);
        mark(badge, 'data-tone', shown.tone);
        return;
      }
      say(cell, shown);
      if (kind.includes('drops')) cell.classList.toggle('loss', shown !== '0');
      if (kind.startsWith('n')) cell.classList.toggle('zero', shown === '0' || shown === '0 B');
    });
  });
}

const BREAKERS = {
  closed: 'good', half_open: 'warn', open: 'bad', forced_open: 'bad', forced_closed: 'note',
};
const STATES = { connected: 'good', waiting: 'warn', awaiting_peer: 'warn', ending: 'quiet' };

const SERVICE = [
  ['name', (s) => s.name],
  ['', (s) => s.breaker ? { text: words(s.breaker), tone: BREAKERS[s.breaker] ?? 'quiet' } : '–'],
  ['n', (s) => count(s.responders)],
  ['n', (s) => count(s.outstanding)],
  ['n', (s) => count(s.requests)],
  ['n drops', (s) => count(s.failures)],
];

const CONNECTION = [
  ['n', (c) => String(c.id)],
  ['name', (c) => c.name],
  ['n', (c) => String(c.pid ?? '–')],
  ['', (c) => c.quota ? `${c.uid} ${c.quota}` : String(c.uid)],
  ['n', (c) => duration(c.age_ms)],
  ['', (c) => ({ text: words(c.state ?? 'connected'), tone: STATES[c.state ?? 'connected'] ?? 'quiet' })],
  ['n', (c) => count(c.messages_in)],
  ['n', (c) => bytes(c.bytes_in)],
  ['n', (c) => count(c.messages_out)],
  ['n', (c) => bytes(c.bytes_out)],
  ['n', (c) => count(c.requests_outstanding)],
  ['n', (c) => c.credit_bytes ? percent(100 * c.credit_used_bytes / c.credit_bytes) : '–'],
  ['n', (c) => bytes(c.backlog_bytes)],
  ['n drops', (c) => count(c.dropped)],
];

function showServices(services) {
  const tone = (service) => ({ bad: 'bad', warn: 'warn' })[BREAKERS[service.breaker]] ?? null;
  fill(element('services'), services, (service) => service.name, SERVICE, tone);
  element('services').hidden = services.length === 0;
  element('services-empty').hidden = services.length > 0;
  say(element('services-count'), services.length || '');
}

function showConnections(connections, demand) {
  const needle = demand.trim().toLowerCase();
  const parts = (c) => [c.id, c.name, c.pid, c.uid, c.quota, words(c.state ?? ''), ...(c.services ?? [])];
  const text = (c) => parts(c).join(' ').toLowerCase();
  const found = needle ? connections.filter((c) => text(c).includes(needle)) : connections;
  const shown = found.slice(0, ROWS_MAX);
  fill(element('connections'), shown, (c) => c.id, CONNECTION, () => null);
  element('connections').hidden = shown.length === 0;
  say(element('connections-count'), connections.length || '');
  const rest = found.length - shown.length;
  const limit = `Showing the first ${ROWS_MAX}; ${count(rest)} more: use the filter.`;
  const more = rest > 0 ? limit : '';
  const none = connections.length === 0 ? 'No connections.' : 'No matching connections.';
  say(element('connections-rest'), shown.length === 0 ? none : more);
}

const HOLDING = [
  ['n', (h) => String(h.uid)],
  ['', (h) => h.quota ?? '–'],
  ['name', (h) => words(h.resource)],
  ['n', (h) => amount(h, h.held)],
  ['n', (h) => amount(h, h.limit)],
  ['', (h) => h.key ?? '–'],
];

/** An amount of what users share, in its unit. */
function amount(holding, number) {
  return holding.resource.endsWith('_bytes') ? bytes(number) : count(number);
}

function showHoldings(holdings) {
  // One that holds nine tenths of what it may is marked.
  const tone = (h) => h.held * 10 >= h.limit * 9 ? 'warn' : null;
  fill(element('holdings'), holdings, (h) => `${h.uid}/${h.quota ?? ''}/${h.resource}`, HOLDING, tone);
}

const ACTORS = { running: 'good', restarting: 'warn', gave_up: 'bad', stopped: 'quiet' };
/** How long a restart is marked, in milliseconds. */
const FRESH = 15000;

/** Restarts that were seen: how many of each actor, and when the last one came. */
const seenRestarts = new Map();

function forgetRestarts() {
  seenRestarts.clear();
}

/** Whether an actor was started again just now. */
function isFresh(actor, now) {
  const key = `${actor.supervisor}/${actor.name}`;
  const seen = seenRestarts.get(key);
  if (!seen || seen.restarts > actor.restarts) seenRestarts.set(key, { restarts: actor.restarts, at: -Infinity });
  else if (seen.restarts < actor.restarts) seenRestarts.set(key, { restarts: actor.restarts, at: now });
  return now - seenRestarts.get(key).at < FRESH;
}

function showTree(actors, now) {
  const names = new Set(actors.map((actor) => actor.name));
  const under = (supervisor) => actors.filter((a) => a.supervisor === supervisor && a.name !== supervisor);
  // The roots: supervisors that are no actors themselves, and actors that are their own supervisor.
  const tops = [...new Set(actors.map((actor) => actor.supervisor))].filter((s) => !names.has(s));
  const roots = [...tops.map((name) => ({ name })), ...actors.filter((actor) => actor.supervisor === actor.name)];
  const level = (list, items) => keep(list, items, (item) => item.name, buildNode, (node, item) => {
    showNode(node.firstElementChild, item, now);
    const below = under(item.name);
    if (below.length > 0 && !node.below) node.append(node.below = make('ul'));
    if (node.below) level(node.below, below);
  });
  level(element('tree'), roots);
  const restarts = actors.reduce((sum, actor) => sum + actor.restarts, 0);
  say(element('restarts-count'), restarts ? plural(restarts, 'restart', 'restarts') : '');
}

function buildNode(item) {
  const entry = make('li');
  const node = make('div', 'node');
  node.append(make('span', 'who', item.name), make('span', 'badge'), make('span', 'times'), make('span', 'why'));
  entry.append(node);
  return entry;
}

function showNode(node, actor, now) {
  const [, badge, times, why] = node.children;
  badge.hidden = actor.state === undefined;
  if (actor.state === undefined) return say(times, 'supervisor');
  const state = typeof actor.state === 'string' ? actor.state : Object.keys(actor.state)[0];
  const fresh = isFresh(actor, now);
  const next = actor.state.restarting?.next_in_ms;
  say(badge, next === undefined ? words(state) : `restarting in ${duration(next)}`);
  mark(badge, 'data-tone', ACTORS[state] ?? 'quiet');
  const restarted = fresh ? 'restarted just now · ' : '';
  const often = actor.restarts ? plural(actor.restarts, 'restart', 'restarts') : '';
  const failed = actor.failures > actor.restarts ? plural(actor.failures, 'failure', 'failures') : '';
  say(times, restarted + [often, failed].filter(Boolean).join(' · '));
  mark(node, 'data-fresh', fresh ? 'true' : null);
  say(why, (actor.restarts || actor.failures || state !== 'running') && actor.last_reason ? actor.last_reason : '');
  why.hidden = why.textContent === '';
}
