'use strict';
(function () {
  const data = JSON.parse(document.getElementById('data').textContent);
  const byId = (id) => document.getElementById(id);
  // Names come from a target that nobody vouches for: they are text, never markup.
  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name === 'onclick') element.addEventListener('click', value);
      else if (value === true) element.setAttribute(name, '');
      else if (value !== false && value !== undefined) element.setAttribute(name, value);
    }
    for (const child of children) element.append(child);
    return element;
  }
  const whole = new Intl.NumberFormat('en-US');
  function size(bytes) {
    const sign = bytes < 0 ? '-' : '';
    let value = Math.abs(bytes), unit = 0;
    const units = ['B', 'KB', 'MB', 'GB', 'TB'];
    while (value >= 1024 && unit + 1 < units.length) { value /= 1024; unit += 1; }
    return sign + (unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)) + ' ' + units[unit];
  }
  const signed = (text, value) => (value > 0 ? '+' : '') + text;
  const frames = (stack) => stack.frames.map((index) => data.frames[index]);
  const title = (stack) => (stack.frames.length ? data.frames[stack.frames[0]] : 'not in the verifier\u2019s log');

  /* A table whose rows are made page by page: thousands of rows cost what a page of them costs. */
  function table(place, columns, rows, options) {
    const PAGE = options.page;
    let order = options.order, down = true, shown = PAGE, word = '';
    const body = make('tbody'), head = make('tr'), count = make('span', { class: 'quiet', role: 'status' });
    const more = make('button', { class: 'more', type: 'button', onclick: () => { shown += PAGE; draw(); } }, 'Show more');
    const filter = make('input', { type: 'search', placeholder: options.filter, 'aria-label': options.filter });
    filter.addEventListener('input', () => { word = filter.value.toLowerCase(); shown = PAGE; draw(); });
    columns.forEach((column, index) => {
      const sort = () => { down = order === index ? !down : column.number === true; order = index; shown = PAGE; draw(); };
      const cell = make('th', { scope: 'col', class: column.class || '' });
      cell.append(column.value ? make('button', { type: 'button', onclick: sort }, column.name) : column.name);
      head.append(cell);
    });
    function draw() {
      const wanted = word ? rows.filter((row) => options.text(row).includes(word)) : rows.slice();
      const value = columns[order].value;
      wanted.sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        const way = typeof x === 'string' ? (x < y ? -1 : x > y ? 1 : 0) : x - y;
        return down ? -way : way;
      });
      [...head.children].forEach((cell, index) => {
        if (index === order) cell.setAttribute('aria-sort', down ? 'descending' : 'ascending');
        else cell.removeAttribute('aria-sort');
      });
      body.replaceChildren(...wanted.slice(0, shown).map((row) => {
        const line = make('tr');
        columns.forEach((column) => line.append(make('td', { class: column.class || '' }, column.cell(row))));
        return line;
      }));
      const visible = Math.min(shown, wanted.length);
      count.textContent = visible + ' of ' + wanted.length + (wanted.length === rows.length ? '' : ' (of ' + rows.length + ' in all)');
      more.hidden = visible === wanted.length;
    }
    draw();
    place.replaceChildren(make('div', { class: 'tools' }, filter, count),
      make('div', { class: 'wide' }, make('table', {}, make('caption', { class: 'quiet' }, options.caption), make('thead', {}, head), body)), more);
  }

  function spark(values) {
    if (!values || values.length < 2) return '';
    const most = Math.max(...values), least = Math.min(...values), space = 'http://www.w3.org/2000/svg';
    const all = data.looks[data.looks.length - 1] || 1;
    const svg = document.createElementNS(space, 'svg'), line = document.createElementNS(space, 'polyline');
    svg.setAttribute('class', 'spark'); svg.setAttribute('viewBox', '0 0 90 22'); svg.setAttribute('role', 'img');
    svg.setAttribute('aria-label', values.map(size).join(', '));
    line.setAttribute('points', values.map((value, index) =>
      (2 + 86 * data.looks[index] / all).toFixed(1) + ',' + (20 - 18 * (value - least) / (most - least || 1)).toFixed(1)).join(' '));
    svg.append(line);
    return svg;
  }

  function stacks() {
    const most = Math.max(1, ...data.stacks.map((stack) => Math.abs(stack.growth)));
    const column = (name, key, shown) => ({ name, number: true, class: 'n', value: (stack) => stack[key],
      cell: (stack) => make('span', { title: whole.format(stack[key]) }, shown(stack[key])) });
    const who = { name: 'Stack', class: 'name', value: title, cell: (stack) => {
      const list = make('pre', { class: 'frames', hidden: true });
      const button = make('button', { class: 'stack', type: 'button', 'aria-expanded': 'false', onclick: () => {
        if (!list.textContent) list.textContent = frames(stack).join('\n');
        list.hidden = !list.hidden;
        button.setAttribute('aria-expanded', String(!list.hidden));
      } }, title(stack), stack.id ? make('span', { class: 'id' }, '  (' + stack.id + ')') : '');
      return stack.frames.length ? make('div', {}, button, list) : title(stack);
    } };
    const columns = [
      column('Growth', 'growth', (value) => signed(size(value), value)),
      who,
      { name: 'Share', class: 'share', cell: (stack) => {
        const bar = make('div', { class: stack.growth < 0 ? 'bar less' : 'bar' });
        bar.style.width = (100 * Math.abs(stack.growth) / most) + '%';
        return bar;
      } },
      column('In use', 'bytes', size),
      column('Blocks', 'count', (value) => whole.format(value)),
      { ...column('Blocks grew', 'more', (value) => signed(whole.format(value), value)), class: 'n rest' },
    ];
    if (data.stacks.some((stack) => stack.trail && stack.trail.length > 1)) {
      columns.splice(2, 0, { name: 'Over time', class: '', cell: (stack) => spark(stack.trail) });
    }
    table(byId('stacks'), columns, data.stacks, { page: 25, order: 0, filter: 'Filter stacks by a frame',
      caption: 'Who allocated: the driver\u2019s frame first; open a row for the whole stack.',
      text: (stack) => (stack.text = stack.text || (frames(stack).join('\n') + ' ' + stack.id).toLowerCase()) });
  }

  function blocks() {
    const groups = new Map();
    for (const [address, bytes, tag, verdict, evidence, stack, why] of data.blocks) {
      const key = [stack, bytes, tag, verdict, evidence, why].join();
      let group = groups.get(key);
      if (!group) groups.set(key, group = { bytes, tag: data.words.tags[tag], verdict: data.words.verdicts[verdict],
        evidence: evidence.split(' ').filter(Boolean).map((at) => data.words.evidence[at]).join(', '),
        stack: stack < 0 ? null : data.stacks[stack], why: why < 0 ? '' : data.words.why[why], addresses: [] });
      group.addresses.push(address);
    }
    const rows = [...groups.values()];
    const who = (group) => (group.stack ? title(group.stack) : 'not in the log' + (group.why ? ': ' + group.why : ''));
    const columns = [
      { name: 'Blocks', number: true, class: 'n', value: (group) => group.addresses.length, cell: (group) => whole.format(group.addresses.length) },
      { name: 'Size each', number: true, class: 'n', value: (group) => group.bytes, cell: (group) => '0x' + group.bytes.toString(16) },
      { name: 'Together', number: true, class: 'n', value: (group) => group.bytes * group.addresses.length,
        cell: (group) => size(group.bytes * group.addresses.length) },
      { name: 'Tag', value: (group) => group.tag, cell: (group) => group.tag },
      { name: 'Verdict', value: (group) => group.verdict, cell: (group) => make('span', { class: 'verdict ' +
        ({ still: 'sure', new: 'open', unknown: 'open', freed: 'calm', reused: 'calm' })[group.verdict] }, group.verdict) },
      { name: 'Evidence', value: (group) => group.evidence, cell: (group) => group.evidence || 'none' },
      { name: 'Stack and addresses', class: 'name', value: who, cell: (group) => {
        const list = make('ul', { class: 'addresses', hidden: true });
        const more = make('button', { class: 'more', type: 'button', hidden: true, onclick: () => extend() }, 'More addresses');
        let at = 0;
        function extend() {
          list.append(...group.addresses.slice(at, at + 200).map((address) => make('li', {}, address)));
          at = Math.min(at + 200, group.addresses.length);
          more.hidden = list.hidden || at === group.addresses.length;
        }
        const button = make('button', { class: 'stack', type: 'button', 'aria-expanded': 'false', onclick: () => {
          list.hidden = !list.hidden;
          if (at === 0) extend();
          more.hidden = list.hidden || at === group.addresses.length;
          button.setAttribute('aria-expanded', String(!list.hidden));
        } }, who(group));
        return make('div', {}, button, list, more);
      } },
    ];
    table(byId('blocks'), columns, rows, { page: 50, order: 2, filter: 'Filter blocks by tag, verdict, frame or address',
      caption: 'Blocks of one stack, size, tag and verdict together; open a row for the addresses.',
      text: (group) => (group.text = group.text || [group.tag, group.verdict, group.evidence, who(group), group.addresses.join(' ')].join(' ').toLowerCase()) });
  }

  /* One flame graph for three numbers. The outermost frame is at the bottom, as these graphs are read. */
  function flame() {
    const place = byId('flame'), says = byId('flame-says'), search = byId('flame-search');
    const metrics = { bytes: (stack) => stack.bytes, blocks: (stack) => stack.count, growth: (stack) => stack.growth };
    let metric = 'growth', root, focus;
    const name = (value) => (metric === 'blocks' ? whole.format(value) + ' blocks' : size(value));
    function node(label, parent) { return { label, parent, weight: 0, value: 0, children: new Map() }; }
    function build() {
      root = node('all', null);
      for (const stack of data.stacks) {
        const value = metrics[metric](stack);
        if (!value) continue;
        let at = root;
        const path = stack.frames.length ? frames(stack).reverse() : ['(not in the verifier\u2019s log)'];
        at.weight += Math.abs(value); at.value += value;
        for (const label of path) {
          let next = at.children.get(label);
          if (!next) at.children.set(label, next = node(label, at));
          next.weight += Math.abs(value); next.value += value;
          at = next;
        }
      }
      focus = root;
    }
    // A module has one hue; the kernel's own frames are pale, so that drivers stand out.
    const hues = new Map();
    function paint(button, label, value) {
      const module = label.split(/[!+]/)[0];
      const own = module === 'nt' || module === 'hal' || module === 'all' || label[0] === '(';
      button.classList.add(value < 0 ? 'less' : own ? 'kernel' : 'driver');
      if (value < 0 || own) return;
      if (!hues.has(module)) hues.set(module, (18 + 67 * hues.size) % 360);
      button.style.setProperty('--hue', hues.get(module));
    }
    function tell(of) {
      says.textContent = of.label + ': ' + name(of.value) + ' (' + (100 * of.weight / (root.weight || 1)).toFixed(1) + ' %)';
    }
    function draw() {
      const ROW = 20, boxes = [], word = search.value.toLowerCase();
      const above = []; for (let at = focus.parent; at; at = at.parent) above.unshift(at);
      const width = place.clientWidth || 800;
      let found = 0, top = 0;
      function box(of, left, share, level, past) {
        if (share * width < 1.5) return;
        top = Math.max(top, level);
        const hit = word && of.label.toLowerCase().includes(word);
        if (hit) found += 1;
        const button = make('button', { type: 'button', class: (hit ? 'hit ' : '') + (past ? 'past' : ''),
          title: of.label + ': ' + name(of.value) + ' (' + (100 * of.weight / root.weight).toFixed(1) + ' %)' },
          share * width > 24 ? of.label : '');
        button.style.left = (left * 100) + '%'; button.style.width = (share * 100) + '%';
        button.style.bottom = (level * ROW) + 'px'; paint(button, of.label, of.value);
        if (share * width <= 24) button.setAttribute('aria-label', of.label);
        button.addEventListener('click', () => { focus = of; draw(); tell(of); });
        button.addEventListener('mouseenter', () => tell(of));
        button.addEventListener('focus', () => tell(of));
        boxes.push(button);
        let x = left;
        if (!past) for (const child of [...of.children.values()].sort((a, b) => b.weight - a.weight)) {
          const part = share * child.weight / of.weight;
          box(child, x, part, level + 1, false);
          x += part;
        }
      }
      above.forEach((of, level) => box(of, 0, 1, level, true));
      if (focus.weight) box(focus, 0, 1, above.length, false);
      // Frames too narrow to be drawn need no room.
      place.style.height = ((top + 1) * ROW) + 'px';
      place.replaceChildren(...boxes);
      if (!root.weight) says.textContent = 'Nothing: no stack has ' + metric + '.';
      else if (word) says.textContent = found + ' frames match';
      else tell(focus);
    }
    for (const input of document.querySelectorAll('input[name=metric]')) {
      input.addEventListener('change', () => { metric = input.value; build(); draw(); });
    }
    search.addEventListener('input', draw);
    byId('flame-reset').addEventListener('click', () => { search.value = ''; focus = root; draw(); });
    addEventListener('resize', draw);
    build();
    if (!root.weight) { metric = 'bytes'; byId('metric-bytes').checked = true; build(); }
    draw();
  }

  function growth() {
    const place = byId('growth'), points = data.growth;
    const rows = points.map(([time, bytes], index) => make('tr', {}, make('td', { class: 'n' }, time.toFixed(1) + ' s'),
      make('td', { class: 'n', title: whole.format(bytes) }, size(bytes)),
      make('td', { class: 'n' }, index ? signed(size(bytes - points[index - 1][1]), bytes - points[index - 1][1]) : '')));
    byId('growth-table').replaceChildren(...rows);
    if (points.length < 2 || typeof uPlot !== 'function') { place.hidden = true; return; }
    let chart;
    // Round numbers of KB and MB are powers of two.
    const steps = Array.from({ length: 50 }, (_, power) => 2 ** power);
    const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    function draw() {
      if (chart) chart.destroy();
      const axis = { stroke: css('--soft'), grid: { stroke: css('--line'), width: 1 }, ticks: { stroke: css('--line'), width: 1 } };
      chart = new uPlot({
        width: place.clientWidth || 700, height: 260, scales: { x: { time: false }, y: { range: (u, least, most) => [Math.min(0, least), most * 1.08 || 1] } },
        cursor: { drag: { x: true, y: false } },
        axes: [{ ...axis, label: 'seconds of the target\u2019s running time', values: (u, ticks) => ticks.map((tick) => tick + ' s') },
          { ...axis, label: 'bytes in use', size: 84, incrs: steps, values: (u, ticks) => ticks.map(size) }],
        series: [{ label: 'stop at', value: (u, value) => (value === null ? '' : value.toFixed(1) + ' s') },
          { label: 'in use', stroke: css('--accent'), width: 2, fill: css('--accent-soft') + '55', points: { show: true, size: 7 },
            value: (u, value) => (value === null ? '' : size(value)) }],
      }, [points.map((point) => point[0]), points.map((point) => point[1])], place);
    }
    draw();
    addEventListener('resize', draw);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
  }

  growth(); stacks(); flame(); blocks();
})();
