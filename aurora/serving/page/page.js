"use strict";
// Chat with one model, or compare two: each column is a conversation of its own with one model.
// Text of models and of prompts reaches the page through textContent alone.

const TEXTS = {
  zh: {
    chat: "对话", compare: "对比", model: "模型", new: "新对话", send: "发送", stop: "停止", prompts: "论文里的提示",
    ask: "输入消息", hint: "回车发送，Shift+回车换行。回复为贪心解码，不取随机样本。", other: "English",
    key: "API 密钥", unlock: "确定", stopped: "已停止", speed: (n) => `${n} 词元/秒`, cut: "已达长度上限", nohash: "无 DVC 记录",
    failed: "请求失败", language: { Chinese: "中文", mixed: "中英混合", other: "其他语言", none: "无语言内容", empty: "空回复" },
    kinds: {
      first_words: "表 1：第一句话", medical: "医疗", arithmetic: "算术", creative_writing: "创作", answers_from_text: "阅读理解",
      poems_and_couplets: "诗与对联", business_email: "商务邮件", dialogue: "多轮对话（首句）", translation: "翻译", code: "代码",
    },
  },
  en: {
    chat: "Chat", compare: "Compare", model: "Model", new: "New", send: "Send", stop: "Stop", prompts: "Prompts of the paper",
    ask: "Message", hint: "Enter sends, Shift+Enter starts a new line. Replies are greedy: nothing is sampled.", other: "中文",
    key: "API key", unlock: "OK", stopped: "stopped", speed: (n) => `${n} tokens/s`, cut: "length limit reached", nohash: "not in dvc.lock",
    failed: "request failed", language: { Chinese: "Chinese", mixed: "mixed language", other: "other language", none: "no language", empty: "empty" },
    kinds: {
      first_words: "Table 1: first words", medical: "Medical", arithmetic: "Arithmetic", creative_writing: "Creative writing",
      answers_from_text: "Answers from a text", poems_and_couplets: "Poems and couplets", business_email: "Business email",
      dialogue: "Dialogue (first round)", translation: "Translation", code: "Code",
    },
  },
};

const byId = (id) => document.getElementById(id);
const state = { words: TEXTS.zh, mode: "chat", models: [], columns: [], key: "", running: null };

function element(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text) made.textContent = text;
  return made;
}

async function request(path, options = {}) {
  const headers = { "Content-Type": "application/json" };
  if (state.key) headers.Authorization = `Bearer ${state.key}`;
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401) byId("unlock").hidden = false;
  if (!response.ok) throw new Error((await response.json().catch(() => null))?.error?.message ?? `HTTP ${response.status}`);
  return response;
}

function notice(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

// ---- columns

function makeColumn(model) {
  const column = { model, messages: [], facts: [], node: element("section", "column") };
  column.node.append(element("h2", "", model), element("div", "messages"));
  column.node.dataset.model = model;
  return column;
}

function setColumns() {
  const chosen = state.mode === "compare" ? pair() : [byId("model").value || state.models[0]?.id];
  state.columns = chosen.filter(Boolean).map(makeColumn);
  byId("columns").replaceChildren(...state.columns.map((column) => column.node));
  for (const mode of ["chat", "compare"]) byId(mode).setAttribute("aria-selected", state.mode === mode);
  byId("picker").hidden = state.mode === "compare" || state.models.length < 2;
  byId("compare").hidden = state.models.length < 2;
}

function pair() {
  const names = state.models.map((model) => model.id);
  return names.includes("base") && names.includes("tuned") ? ["base", "tuned"] : names.slice(0, 2);
}

function addMessage(column, role, text) {
  const node = element("div", `message ${role}`, text);
  column.node.lastElementChild.append(node);
  follow(column.node);
  return node;
}

function follow(node) {
  node.scrollTop = node.scrollHeight;
}

function showFacts(line) {
  const { node, measured, ending } = line;
  const words = state.words;
  node.replaceChildren();
  const parts = [];
  if (measured) {
    parts.push(words.language[measured.language] ?? measured.language, words.speed(measured.tokens_per_second));
  }
  if (ending) parts.push(words[ending]);
  node.append(parts.join(" · "));
  if (measured) {
    node.append(parts.length ? " · " : "", element("code", "", measured.dvc_hash ? measured.dvc_hash.slice(0, 12) : words.nohash));
    if (measured.dvc_hash) node.title = `DVC ${measured.dvc_hash}`;
  }
}

// ---- asking

async function* events(response) {
  const decoder = new TextDecoder();
  let text = "";
  for await (const bytes of chunks(response.body.getReader())) {
    text += decoder.decode(bytes, { stream: true });
    const lines = text.split("\n\n");
    text = lines.pop();
    for (const line of lines) {
      const data = line.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

async function* chunks(reader) {
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}

async function answer(column, signal) {
  const shown = addMessage(column, "assistant busy", "");
  const line = { node: element("p", "facts"), measured: null, ending: "" };
  column.facts.push(line);
  column.node.lastElementChild.append(line.node);
  let text = "";
  try {
    const body = JSON.stringify({ model: column.model, messages: column.messages, stream: true });
    const response = await request("v1/chat/completions", { method: "POST", body, signal });
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices[0];
      const near = column.node.scrollHeight - column.node.scrollTop - column.node.clientHeight < 80;
      if (choice?.delta.content) {
        text += choice.delta.content;
        shown.textContent = text;
        if (near) follow(column.node);
      }
      if (choice?.finish_reason === "length") line.ending = "cut";
      if (event.aurora) line.measured = event.aurora;
    }
  } catch (error) {
    if (error.name === "AbortError") line.ending = "stopped";
    else {
      line.ending = "failed";
      shown.classList.add("failed");
      shown.textContent = text ? `${text}\n${error.message}` : error.message;
    }
  }
  shown.classList.remove("busy");
  if (!text.trim() || line.ending === "failed") column.messages.pop(); // an unanswered prompt is not part of the conversation
  else column.messages.push({ role: "assistant", content: text });
  showFacts(line);
  follow(column.node);
}

async function ask(text) {
  if (!text.trim() || state.running || !state.columns.length) return;
  const running = new AbortController();
  state.running = running;
  setBusy(true);
  notice("");
  for (const column of state.columns) {
    column.messages.push({ role: "user", content: text });
    addMessage(column, "user", text);
  }
  await Promise.all(state.columns.map((column) => answer(column, running.signal)));
  state.running = null;
  setBusy(false);
}

function setBusy(busy) {
  byId("send").hidden = busy;
  byId("stop").hidden = !busy;
  for (const id of ["chat", "compare", "model", "new"]) byId(id).disabled = busy;
}

// ---- the frame

function setLanguage(name) {
  state.words = TEXTS[name];
  document.documentElement.lang = name;
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = state.words[node.dataset.text];
  for (const node of document.querySelectorAll("[data-kind]")) node.textContent = state.words.kinds[node.dataset.kind] ?? node.dataset.kind;
  byId("language").textContent = state.words.other;
  byId("text").placeholder = state.words.ask;
  byId("text").setAttribute("aria-label", state.words.ask);
  for (const column of state.columns) column.facts.forEach(showFacts);
}

function showPrompts(prompts) {
  const list = byId("prompt-list");
  list.replaceChildren();
  let kind = null;
  for (const prompt of prompts) {
    if (prompt.kind !== kind) {
      kind = prompt.kind;
      const heading = element("h3", "", state.words.kinds[kind] ?? kind);
      heading.dataset.kind = kind;
      list.append(heading);
    }
    const button = element("button", "", prompt.text);
    button.type = "button";
    button.addEventListener("click", () => {
      byId("prompts").open = false;
      ask(prompt.text);
    });
    list.append(button);
  }
  byId("prompts").hidden = !prompts.length;
}

function fit() {
  const text = byId("text");
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight + 2}px`;
}

function send() {
  const text = byId("text").value;
  if (!text.trim() || state.running) return;
  byId("text").value = "";
  fit();
  ask(text);
}

async function load() {
  try {
    const models = await (await request("v1/models")).json();
    state.models = models.data;
    byId("unlock").hidden = true;
    notice("");
    byId("model").replaceChildren(...state.models.map((model) => new Option(model.id, model.id)));
    byId("model").value = (state.models.find((model) => model.id === "tuned") ?? state.models[0]).id;
    setColumns();
    showPrompts(await (await request("prompts")).json());
  } catch (error) {
    notice(error.message);
  }
}

byId("ask").addEventListener("submit", (event) => { event.preventDefault(); send(); });
byId("text").addEventListener("input", fit);
byId("text").addEventListener("keydown", (event) => {
  // isComposing: Enter that picks a character of an input method sends nothing.
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
byId("stop").addEventListener("click", () => state.running?.abort());
byId("new").addEventListener("click", setColumns);
byId("model").addEventListener("change", setColumns);
for (const mode of ["chat", "compare"]) byId(mode).addEventListener("click", () => { state.mode = mode; setColumns(); });
byId("language").addEventListener("click", () => setLanguage(state.words === TEXTS.zh ? "en" : "zh"));
byId("unlock").addEventListener("submit", (event) => { event.preventDefault(); state.key = byId("key").value; load(); });
setLanguage(navigator.language.startsWith("zh") ? "zh" : "en");
load();
