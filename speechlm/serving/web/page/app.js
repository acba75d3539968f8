// One screen to talk in. Speaks the Realtime events of this page's own server; no library, no build.

const $ = (id) => document.getElementById(id);
const RATES = [8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 96000];
const PARTS = [
  ["hear_ms", "hearing"],
  ["wait_ms", "prompt"],
  ["think_ms", "thinking"],
  ["decode_ms", "mel"],
  ["speak_ms", "sound"],
];
const TAP_MS = 350; // a press shorter than this is a tap: it opens the microphone until the next one
const LEAST_MS = 200; // of speech that is worth a reply

// ---- sound out ------------------------------------------------------------------------------------------------------

class Player {
  // Plays chunks without seams, and knows how much of them was heard.
  constructor(context, analyser) {
    this.context = context;
    this.analyser = analyser;
    this.sources = new Set();
    this.next = 0;
    this.begun = 0;
    this.queued = 0;
  }

  get playing() {
    return this.sources.size > 0;
  }

  push(samples) {
    const { context } = this;
    const buffer = context.createBuffer(1, samples.length, context.sampleRate);
    buffer.copyToChannel(samples, 0);
    const source = context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.analyser);
    if (!this.playing || this.next < context.currentTime) {
      this.next = context.currentTime + 0.04;
      if (!this.queued) this.begun = this.next;
    }
    source.start(this.next);
    this.next += buffer.duration;
    this.queued += buffer.duration;
    this.sources.add(source);
    source.onended = () => {
      this.sources.delete(source);
      if (!this.sources.size) this.onidle?.();
    };
  }

  heardMs() {
    const heard = Math.min(this.queued, Math.max(0, this.context.currentTime - this.begun));
    return Math.round(1000 * heard);
  }

  stop() {
    for (const source of this.sources) {
      source.onended = null;
      source.stop();
    }
    this.sources.clear();
    this.onidle?.();
  }

  reset() {
    this.stop();
    this.queued = 0;
  }
}

// ---- the page's state -----------------------------------------------------------------------------------------------

const state = {
  key: sessionStorage.getItem("key") || "",
  socket: null,
  context: null,
  player: null,
  micAnalyser: null,
  speakAnalyser: null,
  microphone: false, // whether there is one
  sending: false, // whether what it hears goes to the server
  handsfree: false,
  pressedAt: 0,
  sentMs: 0,
  askedAt: 0,
  items: new Map(), // item id -> {element, said, chunks}
  current: null, // item of the reply under way, or last
  underWay: false,
};
window.talk = state; // for the browser's console

function trouble(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

function connection(name, text) {
  $("connection").dataset.state = name;
  $("connection").textContent = text;
}

// ---- transcript -----------------------------------------------------------------------------------------------------

function bubble(id, role, text = "") {
  if (state.items.has(id)) return state.items.get(id);
  const element = document.createElement("li");
  element.className = role;
  element.dataset.item = id;
  const who = document.createElement("span");
  who.className = "who";
  who.textContent = role === "user" ? "You" : $("model").textContent;
  const said = document.createElement("p");
  said.className = "said";
  said.textContent = text;
  element.append(who, said);
  $("log").append(element);
  scroll();
  const item = { id, role, element, said, chunks: [], seconds: 0 };
  state.items.set(id, item);
  return item;
}

function scroll() {
  $("log").scrollTop = $("log").scrollHeight;
}

function foot(item, note) {
  if (item.foot) item.foot.remove();
  item.foot = document.createElement("div");
  item.foot.className = "foot";
  if (item.chunks.length) {
    const replay = document.createElement("button");
    replay.type = "button";
    replay.className = "replay";
    replay.textContent = "Replay";
    replay.setAttribute("aria-label", `Replay: ${item.said.textContent.slice(0, 60)}`);
    replay.onclick = () => {
      state.player.reset();
      for (const chunk of item.chunks) state.player.push(chunk);
      busy();
    };
    item.foot.append(replay);
  }
  const words = document.createElement("span");
  words.textContent = [item.seconds ? `${item.seconds.toFixed(1)} s` : "", note].filter(Boolean).join(" · ");
  item.foot.append(words);
  item.element.append(item.foot);
  scroll();
}

function showLatency(ms, timings) {
  $("latency").hidden = false;
  $("first").textContent = `${Math.round(ms)} ms`;
  if (!timings) return;
  const total = PARTS.reduce((sum, [name]) => sum + timings[name], 0) || 1;
  $("bar").replaceChildren();
  $("parts").replaceChildren();
  PARTS.forEach(([name, label], n) => {
    const piece = document.createElement("i");
    piece.className = `part${n}`;
    piece.style.width = `${(100 * timings[name]) / total}%`;
    $("bar").append(piece);
    const line = document.createElement("li");
    const mark = document.createElement("i");
    mark.className = `part${n}`;
    line.append(mark, `${label} ${Math.round(timings[name])} ms`);
    $("parts").append(line);
  });
  $("bar").setAttribute("aria-label", PARTS.map(([name, label]) => `${label} ${Math.round(timings[name])} ms`).join(", "));
}

// ---- the server -----------------------------------------------------------------------------------------------------

async function enter() {
  // The model's name, and whether the key opens the door.
  const headers = state.key ? { Authorization: `Bearer ${state.key}` } : {};
  const answer = await fetch("/v1/models", { headers });
  if (answer.status === 401) {
    $("door").showModal();
    $("door").addEventListener("close", () => {
      state.key = $("key").value;
      sessionStorage.setItem("key", state.key);
      start();
    }, { once: true });
    return null;
  }
  if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
  return (await answer.json()).data[0];
}

async function start() {
  try {
    const model = await enter();
    if (!model) return;
    $("model").textContent = model.id;
    $("template").textContent = model.template;
    document.title = `Talk to ${model.id}`;
    connect();
  } catch (error) {
    connection("broken", "not connected");
    trouble(`${error.message}. Trying again …`);
    setTimeout(start, 3000);
  }
}

function connect() {
  const protocols = ["realtime", ...(state.key ? [`openai-insecure-api-key.${state.key}`] : [])];
  const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/realtime`, protocols);
  state.socket = socket;
  connection("off", "connecting");
  socket.onmessage = (message) => {
    const event = JSON.parse(message.data);
    handlers[event.type]?.(event);
  };
  socket.onopen = () => trouble("");
  socket.onclose = () => {
    connection("broken", "not connected");
    state.underWay = false;
    busy();
    setTimeout(start, 2000);
  };
}

function send(type, fields = {}) {
  if (state.socket?.readyState !== WebSocket.OPEN) {
    trouble("There is no connection to the server.");
    return false;
  }
  state.socket.send(JSON.stringify({ type, ...fields }));
  return true;
}

function configure() {
  const rate = state.context ? state.context.sampleRate : 48000;
  const detection = { type: "server_vad", threshold: 0.5, prefix_padding_ms: 300, silence_duration_ms: 500 };
  send("session.update", {
    session: {
      type: "realtime",
      audio: {
        input: {
          format: { type: "audio/pcm", rate },
          turn_detection: state.handsfree ? detection : null,
          transcription: {},
        },
        output: { format: { type: "audio/pcm", rate } },
      },
    },
  });
}

const handlers = {
  "session.created"() {
    connection("on", "connected");
    configure();
  },
  error(event) {
    trouble(event.error.message);
  },
  "input_audio_buffer.speech_started"() {
    $("talk").dataset.hears = "yes";
    interrupt(true);
  },
  "input_audio_buffer.speech_stopped"() {
    delete $("talk").dataset.hears;
    state.askedAt = performance.now();
  },
  "conversation.item.added"({ item }) {
    if (item.role === "user") {
      const typed = item.content[0]?.type === "input_text" ? item.content[0].text : "";
      bubble(item.id, "user", typed);
    }
  },
  "conversation.item.input_audio_transcription.completed"(event) {
    const item = state.items.get(event.item_id);
    if (item) item.said.textContent = event.transcript.trim() || "(spoken)";
    scroll();
  },
  "response.created"() {
    state.underWay = true;
    trouble("");
    busy();
  },
  "response.output_item.added"({ item }) {
    state.current = bubble(item.id, "assistant");
    state.current.element.classList.add("live");
    state.current.first = 0;
    state.player?.reset();
  },
  "response.output_audio_transcript.delta"(event) {
    write(event);
  },
  "response.output_text.delta"(event) {
    write(event);
  },
  "response.output_audio.delta"(event) {
    const item = state.items.get(event.item_id);
    if (!item || item.interrupted) return;
    if (!item.first) {
      item.first = performance.now() - state.askedAt;
      showLatency(item.first, null);
    }
    const samples = fromPcm16(event.delta);
    item.chunks.push(samples);
    item.seconds += samples.length / state.context.sampleRate;
    state.player.push(samples);
    busy();
  },
  "response.done"({ response }) {
    state.underWay = false;
    const item = state.current;
    if (item && response.output.length) {
      item.element.classList.remove("live");
      const notes = { cancelled: "interrupted", incomplete: "cut at its longest", failed: "failed" };
      item.element.classList.toggle("cut", response.status === "cancelled");
      foot(item, item.interrupted ? "interrupted" : notes[response.status] || "");
      if (item.first && response.timings) showLatency(item.first, response.timings);
      $("announce").textContent = `${$("model").textContent}: ${item.said.textContent}`;
    }
    if (response.status === "failed") trouble(response.status_details.error.message);
    busy();
  },
};

function write(event) {
  const item = state.items.get(event.item_id);
  if (!item) return;
  item.said.append(item.said.textContent ? event.delta : event.delta.trimStart());
  scroll();
}

// ---- speaking -------------------------------------------------------------------------------------------------------

async function ready() {
  // Sound can only be opened when somebody has pressed something.
  if (!state.context) {
    let context = new AudioContext({ latencyHint: "interactive" });
    if (!RATES.includes(context.sampleRate)) context = new AudioContext({ sampleRate: 48000 });
    state.context = context;
    state.speakAnalyser = analyser(context);
    state.speakAnalyser.connect(context.destination);
    state.player = new Player(context, state.speakAnalyser);
    state.player.onidle = busy;
    configure();
  }
  await state.context.resume();
}

async function openMicrophone() {
  await ready();
  if (state.microphone) return true;
  try {
    const wishes = { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 };
    const stream = await navigator.mediaDevices.getUserMedia({ audio: wishes });
    await state.context.audioWorklet.addModule("/page/microphone.js");
    const source = state.context.createMediaStreamSource(stream);
    const node = new AudioWorkletNode(state.context, "microphone", { numberOfOutputs: 0 });
    node.port.onmessage = ({ data }) => heard(data);
    state.micAnalyser = analyser(state.context);
    source.connect(state.micAnalyser);
    source.connect(node);
    state.microphone = true;
    return true;
  } catch (error) {
    trouble(`The microphone can not be used (${error.name}). Allow it for this page, or type.`);
    return false;
  }
}

function analyser(context) {
  const node = context.createAnalyser();
  node.fftSize = 1024;
  return node;
}

function heard(samples) {
  if (!state.sending) return;
  state.sentMs += (1000 * samples.length) / state.context.sampleRate;
  send("input_audio_buffer.append", { audio: toPcm16(samples) });
}

async function press() {
  if (state.pressedAt) return;
  state.pressedAt = performance.now();
  const opened = await openMicrophone();
  if (!opened || !state.pressedAt) {
    state.pressedAt = 0;
    return;
  }
  interrupt();
  state.sentMs = 0;
  state.sending = true;
  show();
}

function release() {
  if (!state.pressedAt) return;
  state.pressedAt = 0;
  if (!state.sending) return;
  state.sending = false;
  show();
  if (state.sentMs < LEAST_MS) {
    send("input_audio_buffer.clear");
    return;
  }
  state.askedAt = performance.now();
  send("input_audio_buffer.commit");
  send("response.create");
}

function interrupt(byServer = false) {
  // What was not heard of the reply is not part of the conversation.
  const item = state.current;
  if (!item || item.interrupted || !(state.underWay || state.player?.playing)) return;
  item.interrupted = true;
  const end = state.player ? state.player.heardMs() : 0;
  state.player?.stop();
  if (state.underWay && !byServer) send("response.cancel");
  send("conversation.item.truncate", { item_id: item.id, content_index: 0, audio_end_ms: end });
  item.element.classList.add("cut");
  foot(item, "interrupted");
  busy();
}

async function switchHandsfree() {
  const wanted = $("handsfree").checked;
  if (wanted && !(await openMicrophone())) {
    $("handsfree").checked = false;
    return;
  }
  state.handsfree = wanted;
  state.sending = wanted;
  state.pressedAt = 0;
  configure();
  show();
}

function show() {
  const name = state.handsfree ? (state.sending ? "Microphone on" : "Microphone off") : "Hold to talk";
  $("talk").setAttribute("aria-pressed", String(state.sending));
  $("talk-label").textContent = name;
  $("hint").hidden = state.handsfree;
}

function busy() {
  $("stop").disabled = !(state.underWay || state.player?.playing);
}

function toPcm16(samples) {
  const bytes = new Uint8Array(2 * samples.length);
  const view = new DataView(bytes.buffer);
  samples.forEach((x, n) => view.setInt16(2 * n, Math.round(32767 * Math.max(-1, Math.min(1, x))), true));
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
}

function fromPcm16(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 2 }, (_, n) => view.getInt16(2 * n, true) / 32768);
}

// ---- waveform -------------------------------------------------------------------------------------------------------

const levels = [];
const frame = new Float32Array(1024);

function loudness(node) {
  if (!node) return 0;
  node.getFloatTimeDomainData(frame);
  return Math.sqrt(frame.reduce((sum, x) => sum + x * x, 0) / frame.length);
}

function draw() {
  requestAnimationFrame(draw);
  const canvas = $("wave");
  const scale = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth * scale, canvas.clientHeight * scale];
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const mine = state.sending ? loudness(state.micAnalyser) : 0;
  const theirs = state.player?.playing ? loudness(state.speakAnalyser) : 0;
  levels.push([mine, theirs]);
  const step = 5 * scale;
  while (levels.length > width / step) levels.shift();
  const pen = canvas.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  const colours = [style.getPropertyValue("--mine"), style.getPropertyValue("--theirs"), style.getPropertyValue("--line")];
  pen.clearRect(0, 0, width, height);
  pen.lineCap = "round";
  pen.lineWidth = 3 * scale;
  levels.forEach(([own, other], n) => {
    const level = Math.max(own, other);
    const half = Math.max(0.5 * scale, Math.min(1, 3.2 * Math.sqrt(level) * 0.55) * (height / 2 - 3 * scale));
    pen.strokeStyle = level < 0.004 ? colours[2] : own >= other ? colours[0] : colours[1];
    const x = width - (levels.length - n) * step + step / 2;
    pen.beginPath();
    pen.moveTo(x, height / 2 - half);
    pen.lineTo(x, height / 2 + half);
    pen.stroke();
  });
}

// ---- hands ----------------------------------------------------------------------------------------------------------

let tapped = false;

function down() {
  if (state.handsfree) {
    state.sending = !state.sending;
    show();
  } else if (tapped) {
    tapped = false;
    release();
  } else {
    press();
  }
}

function up() {
  if (state.handsfree || !state.pressedAt) return;
  if (performance.now() - state.pressedAt < TAP_MS) {
    tapped = true; // stays open until the next tap
    return;
  }
  release();
}

$("talk").addEventListener("pointerdown", (event) => {
  event.preventDefault();
  $("talk").focus();
  $("talk").setPointerCapture(event.pointerId);
  down();
});
$("talk").addEventListener("pointerup", up);
$("talk").addEventListener("pointercancel", up);
$("talk").addEventListener("contextmenu", (event) => event.preventDefault());

const typing = () => ["INPUT", "BUTTON"].includes(document.activeElement?.tagName) && document.activeElement !== $("talk");
addEventListener("keydown", (event) => {
  if (event.key === "Escape") interrupt();
  if (typing() || event.repeat || event.ctrlKey || event.metaKey) return;
  if (event.key === " " || (event.key === "Enter" && document.activeElement === $("talk"))) {
    event.preventDefault();
    down();
  }
});
addEventListener("keyup", (event) => {
  if (typing()) return;
  if (event.key === " " || event.key === "Enter") up();
});
addEventListener("blur", () => {
  if (!state.handsfree && !tapped) release();
});

$("handsfree").addEventListener("change", switchHandsfree);
$("stop").addEventListener("click", () => interrupt());
$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text) return;
  await ready();
  interrupt();
  const content = [{ type: "input_text", text }];
  if (!send("conversation.item.create", { item: { type: "message", role: "user", content } })) return;
  state.askedAt = performance.now();
  send("response.create");
  $("text").value = "";
});

show();
start();
draw();
