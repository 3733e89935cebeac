-- Finds a string in a JSON text (RFC 8259) without reading the rest of it. A JSON library would have to write
-- the whole text again, and might change it.
local json = {}

-- What the character after a backslash stands for.
local ESCAPED = { b = "\b", f = "\f", n = "\n", r = "\r", t = "\t" }

-- The position of the quote that ends the string whose opening quote is at this position.
local function end_of_string(text, at)
    repeat
        at = text:find('["\\]', at + 1)
        if at == nil then
            return nil
        elseif text:sub(at, at) == '"' then
            return at
        end
        at = at + 1
    until false
end

-- The last position of the value that begins at this position; nil if the text ends before.
local function end_of_value(text, at)
    local first = text:sub(at, at)
    if first == '"' then
        return end_of_string(text, at)
    elseif first ~= "{" and first ~= "[" then
        return select(2, text:find("^[%w.+-]+", at))
    end
    local depth = 0
    while at do
        local character = text:sub(at, at)
        if character == '"' then
            at = end_of_string(text, at)
        elseif character == "{" or character == "[" then
            depth = depth + 1
        else
            depth = depth - 1
        end
        if depth == 0 then
            return at
        end
        at = at and text:find('["{}%[%]]', at + 1)
    end
    return nil
end

-- The string between two quotes. A surrogate stays half of a pair: nobody looks for one.
local function unquote(text, first, last)
    local inside = text:sub(first + 1, last - 1)
    if not inside:find("\\", 1, true) then
        return inside
    end
    return (inside:gsub("\\(.)(%x?%x?%x?%x?)", function(kind, digits)
        if kind == "u" and #digits == 4 then
            return utf8.char(tonumber(digits, 16))
        end
        return (ESCAPED[kind] or kind) .. digits
    end))
end

-- Where the value of a member is, in the object that begins at this position. The last one counts, as it
-- does for Python's json.
local function member(text, at, wanted)
    local found, position = nil, text:match("^{%s*()", at)
    while position and text:sub(position, position) == '"' do
        local closing = end_of_string(text, position)
        local value = closing and text:match("^%s*:%s*()", closing + 1)
        local last = value and end_of_value(text, value)
        if not last then
            return nil
        end
        if unquote(text, position, closing) == wanted then
            found = value
        end
        position = text:match("^%s*,%s*()", last + 1)
    end
    return found
end

-- The first and last positions of the value at this path of member names, which begins with this
-- character; nil if there is none.
local function find(text, path, opening)
    local first = text:match("^%s*()")
    for _, name in ipairs(path) do
        first = first and member(text, first, name)
    end
    local last = first and text:sub(first, first) == opening and end_of_value(text, first)
    if last then
        return first, last
    end
    return nil
end

-- The text of the object at this path; nil if there is none.
function json.find_object(text, path)
    local first, last = find(text, path, "{")
    return first and text:sub(first, last)
end

-- The elements of the array at this path, as texts, and its first and last positions; nil if there is none.
function json.find_array(text, path)
    local first, last = find(text, path, "[")
    if first == nil then
        return nil
    end
    local elements, at = {}, text:match("^%[%s*()", first)
    while at and text:sub(at, at) ~= "]" do
        local closing = end_of_value(text, at)
        if not closing then
            return nil
        end
        elements[#elements + 1] = text:sub(at, closing)
        at = text:match("^%s*,%s*()", closing + 1)
    end
    return elements, first, last
end

-- The string at this path, and the positions of its quotes; nil if there is none.
function json.find_string(text, path)
    local first, last = find(text, path, '"')
    if first == nil then
        return nil
    end
    return unquote(text, first, last), first, last
end

-- A string as JSON.
function json.quote(text)
    return '"' .. text:gsub('[%c"\\]', function(character)
        return ("\\u%04x"):format(character:byte())
    end) .. '"'
end

return json
