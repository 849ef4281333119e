// Follows `/events` by fetch, because an EventSource cannot send a token. When the connection is lost, the page says so
// and reconnects with exponential backoff.

/** Silence after which the connection is given up, in milliseconds: a snapshot arrives each second. */
const SILENCE = 6000;
/** The delay before the first new attempt and the longest, in milliseconds. */
const [RETRY_FIRST, RETRY_MAX] = [250, 8000];
/** The longest event, in characters. */
const EVENT_MAX = 64 * 1024 * 1024;

/** The token follows `#token=` in the address; browsers do not send that part. */
function tokenIn(hash) {
  const found = /^#(?:.*&)?token=([^&]*)/.exec(hash);
  if (!found) return '';
  try {
    return decodeURIComponent(found[1]);
  } catch {
    return found[1];
  }
}

/** Server-sent events out of pieces of text. */
class EventParser {
  constructor() {
    this.rest = '';
  }

  /** The events that are complete with this piece: pairs of a name and data. */
  take(piece) {
    this.rest += piece;
    const blocks = this.rest.split('\n\n');
    this.rest = blocks.pop();
    if (this.rest.length > EVENT_MAX) throw new Error('an event is too long');
    return blocks.map((block) => {
      let [name, data] = ['message', []];
      for (const line of block.split('\n')) {
        if (line.startsWith('event:')) name = line.slice(6).trim();
        if (line.startsWith('data:')) data.push(line.slice(5).replace(/^ /, ''));
      }
      return [name, data.join('\n')];
    });
  }
}

/** Shows the state of the connection to the broker: `live`, `connecting`, `busy`, `gone`, `refused`. */
function showLink(link, notice) {
  mark(document.body, 'data-link', link);
  const where = element('notice');
  say(where, notice ?? '');
  where.hidden = !notice;
  if (link === 'live') return;
  const states = { gone: ['gone', 'bad'], refused: ['not allowed', 'bad'], busy: ['waiting', 'warn'] };
  const [word, tone] = states[link] ?? ['connecting', 'quiet'];
  say(element('state'), word);
  mark(element('state'), 'data-tone', tone);
  say(element('link'), '');
  element('reasons').hidden = true;
  document.title = `${word} · lapce-ipc`;
}

/** Handles an event. `end` ends the stream. */
function take(name, data) {
  const value = JSON.parse(data);
  if (name === 'snapshot') {
    showLink('live');
    render(value);
  } else if (name === 'news') {
    renderNews(value.topic, value.data);
  } else if (name === 'lost') {
    renderNews('lost', `${plural(value.count, 'event', 'events')} lost: this page was too slow`);
  }
  return name === 'end' ? value.reason : null;
}

/** Follows the stream once. Returns why it ended, and whether any event arrived. */
async function follow(token) {
  const stop = new AbortController();
  let timer = setTimeout(() => stop.abort(), SILENCE);
  let came = false;
  try {
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const response = await fetch('events', { headers, signal: stop.signal, cache: 'no-store', credentials: 'omit' });
    if (response.status === 401) return { refused: true };
    if (!response.ok) return { busy: (await response.text()).trim() || `HTTP status ${response.status}` };
    const [reader, decoder, parser] = [response.body.getReader(), new TextDecoder(), new EventParser()];
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return { why: 'the stream ended', came };
      clearTimeout(timer);
      timer = setTimeout(() => stop.abort(), SILENCE);
      for (const [name, data] of parser.take(decoder.decode(value, { stream: true }))) {
        const end = take(name, data);
        came = true;
        if (end) return { why: end, came };
      }
    }
  } catch {
    return { why: stop.signal.aborted ? 'no response' : 'cannot connect', came };
  } finally {
    clearTimeout(timer);
    stop.abort();
  }
}

/** Waits for so long, or until another token is given. */
function pause(ms) {
  return new Promise((resolve) => {
    const timer = ms === null ? null : setTimeout(resolve, ms);
    addEventListener('hashchange', () => {
      clearTimeout(timer);
      resolve();
    }, { once: true });
  });
}

async function keepFollowing() {
  for (let delay = RETRY_FIRST; ;) {
    const token = tokenIn(location.hash);
    const { refused, busy, why, came } = await follow(token);
    if (refused) {
      showLink('refused', token
        ? 'The token in the address is wrong. Correct it after #token= and press Enter.'
        : 'This broker requires a token. Append it to the address, as in /#token=TOKEN; it is the first line of '
          + 'health_server.token_file.');
      await pause(null);
      delay = RETRY_FIRST;
      continue;
    }
    if (came) delay = RETRY_FIRST;
    const last = shown.snapshot ? ` The page shows the state at ${clock(new Date())}.` : '';
    if (busy) {
      showLink('busy', `The broker refuses this page's event stream: ${busy}.`);
    } else if (came || document.body.dataset.link !== 'gone') {
      showLink('gone', `The connection to the broker is lost: ${why}.${last} The page reconnects by itself.`);
    }
    // Pages that lost the same broker do not all come back at once.
    await pause(delay * (0.75 + Math.random() / 2));
    delay = Math.min(delay * 2, RETRY_MAX);
  }
}

keepFollowing();
